//! What broke in the peers over the years, by its number in the catalogue of failure modes: for
//! each of the forty what stands for it here, or why nothing can.

mod decisions;
mod fencing;
mod leases;
mod replicas;
mod store;
mod timelines;

use std::collections::BTreeSet;

/// A failure mode.
struct Mode {
    number: usize,
    what: &'static str,
    /// What stands for it here.
    scenarios: &'static [(&'static str, fn())],
    /// What of it no simulation shows, and where to look for that.
    beyond: &'static str,
}

/// A mode that names a scenario which does not exist is none that compiles.
macro_rules! modes {
    ($($number:literal $what:literal [$($of:ident :: $scenario:ident),* $(,)?] $beyond:literal)*) => {
        const MODES: &[Mode] = &[$(Mode {
            number: $number,
            what: $what,
            scenarios: &[$((stringify!($scenario), $of::$scenario)),*],
            beyond: $beyond,
        },)*];
    };
}

modes! {
    1 "an isolated primary keeps committing" [
        fencing::f1_a_primary_that_is_cut_off_commits_nothing_past_its_lease,
        fencing::f1_a_primary_whose_guard_hangs_at_the_deadline_is_ended_before_its_lease_is,
    ] "sessions that are open: `real_f1_…` of the examples"
    2 "an old primary returns during a failover and gets clients" [
        fencing::f2_an_old_primary_that_is_back_before_the_promotion_gets_no_client,
    ] ""
    3 "a premature promotion, while the old primary still archives" [
        fencing::f3_a_successor_begins_no_earlier_than_its_predecessor_ended,
    ] "the archive: a server here streams and archives nothing"
    4 "a disk that hangs freezes the loop, and nobody fails over" [
        fencing::f4_a_disk_that_hangs_for_minutes_costs_the_node_its_lock,
        fencing::f4_a_server_that_hangs_and_that_its_agent_cannot_end_is_ended_by_the_guard,
    ] ""
    5 "a watchdog is switched off before the clients are gone" [
        fencing::f5_a_stop_that_hangs_leaves_the_deadline_of_the_guard_armed,
    ] "backends that ignore signals: the guard's own tests have real ones"
    6 "a slow query flips the role, both ways" [
        fencing::f6_what_a_look_comes_to_decides_no_role_that_the_lease_does_not,
    ] "the query: `f6_a_slow_query_keeps_the_role` of the PostgreSQL backend"
    7 "a frozen node wakes and takes the lock back" [
        fencing::f7_a_node_frozen_past_its_lease_never_writes_again_and_rejoins,
    ] "a guard that is frozen as well is outside what is promised"
    8 "a clock that is set back blocks the leader" [
        leases::f8_clocks_that_are_hours_apart_tell_the_same_story,
    ] "jumps: nothing in the core is ever told the time of day"
    9 "a health check says primary after the lock is gone" [
        leases::f9_no_health_check_says_primary_once_the_lock_may_be_gone,
        leases::f9_an_agent_that_stood_still_past_its_lease_does_not_say_primary,
    ] "HTTP: `f9_primary_is_never_200_after_the_permission_ended` of the API"
    10 "a lease is refreshed by a side effect and not by every loop" [
        leases::f10_the_lease_is_renewed_whatever_else_the_agent_is_busy_with,
    ] ""
    11 "the time to live in the store is not what was asked for" [
        leases::f11_a_lease_that_lasts_twice_as_long_costs_time_and_nothing_else,
    ] "what a store makes of a time to live: the conformance suite, with each backend"
    12 "the store's agent restarts, its sessions are lost, and there is a failover" [
        leases::f12_a_session_that_is_lost_costs_a_living_primary_nothing,
        leases::f12_a_session_that_is_lost_for_good_costs_exactly_one_failover,
    ] ""
    13 "a primary steps down although the outage of the store can be survived" [
        store::f13_a_store_that_is_away_for_a_minute_changes_nothing_while_all_consent,
        store::f13_a_primary_that_alone_has_lost_the_store_lives_by_consent,
        store::f13_without_the_consent_of_one_that_may_lead_writes_end_in_time,
    ] "losing members of the store: `f13_…` of the etcd backend"
    14 "errors of the store that pass are taken for final" [
        store::f14_errors_that_pass_cost_nothing_while_the_lease_has_time,
        store::f14_the_guard_is_told_of_every_renewal,
    ] "the codes of real stores: `f14_…` of the etcd backend"
    15 "a stale member of the store has a primary step down" [
        store::f15_an_answer_from_the_past_deposes_nobody,
    ] ""
    16 "a watch goes silent and looks alive" [
        store::f16_what_a_watch_does_not_tell_is_found_out_by_reading,
    ] ""
    17 "storms of watches and updates" [
        store::f17_the_store_gets_so_many_requests_a_node_and_no_more,
    ] ""
    18 "an abandoned campaign blocks the election for ever" [
        store::f18_an_attempt_that_was_given_up_blocks_nobody_for_longer_than_its_lease,
        store::f18_a_holder_that_hears_of_no_renewal_keeps_the_lock_for_a_lease_and_no_longer,
    ] "dropped futures: the conformance suite, with each backend"
    19 "the store dies during a demotion" [
        store::f19_the_store_dies_at_any_moment_of_a_hand_over,
        store::f19_whoever_hands_over_without_a_store_comes_back_to_serve_reads,
        store::f19_a_primary_whose_store_is_gone_comes_back_to_serve_reads,
    ] ""
    20 "a node is in a state that it cannot leave" [
        decisions::f20_every_state_has_an_exit_from_wherever_it_was_entered,
    ] "all states: the model checker, on two nodes"
    21 "an election waits for ever for a dead member" [
        decisions::f21_a_survivor_that_may_not_lead_says_why_and_one_call_ends_it,
        decisions::f21_a_survivor_that_has_everything_leads_though_the_others_are_gone_for_ever,
    ] "a quorum: synchronous mode, which is not built yet"
    22 "writes hang: the primary cannot reach its synchronous standby" [
    ] "synchronous mode, which is not built yet; `Fault::Scatter` is the cut that it needs"
    23 "a row that was seen is lost in synchronous mode" [
    ] "synchronous mode, which is not built yet; `Sim::commit` and `Sim::reads` follow a row"
    24 "the store and the primary disagree on who is synchronous" [
    ] "synchronous mode, which is not built yet; `Fault::WipeSome` and `Fault::Garbage` reach its key"
    25 "the order of a list decides" [
    ] "synchronous mode, which is not built yet; the order of members: a row of `decide`"
    26 "the right candidate defers to a primary that is dead or demoted" [
        decisions::f26_a_standby_that_is_ahead_and_cut_off_from_the_store_blocks_nobody,
        decisions::f26_a_demoted_primary_that_is_ahead_is_waited_for_and_blocks_nobody,
    ] "a synchronous standby that must go first: synchronous mode, which is not built yet"
    27 "an outdated or half-made copy is promoted" [
        decisions::f27_a_standby_that_is_stale_waits_for_those_who_are_not,
        decisions::f27_a_copy_that_is_half_made_or_was_never_begun_is_not_promoted,
    ] ""
    28 "who sees nobody takes itself for the healthiest" [
        decisions::f28_a_wiped_store_makes_no_second_writer_and_comes_back,
        decisions::f28_an_agent_with_data_takes_no_wiped_store_for_a_new_cluster,
        decisions::f28_whatever_documents_are_deleted_the_primary_stays,
    ] ""
    29 "failovers that one wrong signal triggers, and such that none does" [
        decisions::f29_no_signal_that_is_wrong_alone_triggers_a_failover,
    ] ""
    30 "agents of two versions deadlock" [
        decisions::f30_nodes_that_live_by_different_settings_have_one_writer,
    ] "two programs: a cluster here has one machine, and its nodes differ in what they know"
    31 "the number of a timeline is taken for its ancestry" [
        timelines::f31_no_server_follows_a_branch_that_is_not_its_own,
    ] ""
    32 "pg_rewind destroys a node" [
        timelines::f32_a_rewind_whose_source_dies_ends_in_a_healthy_replica,
    ] "files, and log that was not archived: `real_f32_…` of the examples"
    33 "a history grows past a fixed size" [
        timelines::f33_a_history_grows_with_every_timeline_and_no_further_than_it_may,
    ] ""
    34 "stale histories in the archive" [
    ] "the archive: a server here streams and archives nothing"
    35 "logical slots that are made anew skip changes" [
    ] "logical decoding: a log here has positions and no content"
    36 "physical slots pin too much, or too little" [
        timelines::f36_slots_wait_for_a_member_for_its_time_and_pin_nothing_on_a_standby,
    ] "bytes: a log here is never removed"
    37 "the choice between a restore and a copy is computed wrong" [
    ] "backups: a copy here is always made from the primary"
    38 "PostgreSQL is handed a bad segment" [
    ] "segments and their bytes: a log here is a position"
    39 "holes and collisions in the archive after a failover" [
    ] "the archive: a server here streams and archives nothing"
    40 "long jobs are left behind, or run twice" [
        replicas::f40_a_copy_whose_agent_dies_at_any_moment_is_made_once_and_whole,
    ] "children and slots of real programs: `real_f40_…` of the examples"
}

#[test]
fn every_mode_is_there_once_and_has_a_scenario_or_a_reason() {
    let numbers: Vec<usize> = MODES.iter().map(|mode| mode.number).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    for mode in MODES {
        let stands = !mode.scenarios.is_empty() || !mode.beyond.is_empty();
        assert!(stands, "F{} {}", mode.number, mode.what);
        for (name, _) in mode.scenarios {
            let begins = name.starts_with(&format!("f{}_", mode.number));
            assert!(begins, "F{} {}: {name}", mode.number, mode.what);
        }
    }
}

#[test]
fn every_scenario_is_in_the_table_once() {
    let files = [
        include_str!("failure_modes/decisions.rs"),
        include_str!("failure_modes/fencing.rs"),
        include_str!("failure_modes/leases.rs"),
        include_str!("failure_modes/replicas.rs"),
        include_str!("failure_modes/store.rs"),
        include_str!("failure_modes/timelines.rs"),
    ];
    let lines = files.iter().flat_map(|file| file.lines());
    let tests = lines.filter_map(|line| line.strip_prefix("pub(super) fn ")?.split('(').next());
    let tests: Vec<&str> = tests.collect();
    let named = MODES.iter().flat_map(|mode| mode.scenarios);
    let named: Vec<&str> = named.map(|(name, _)| *name).collect();
    assert_eq!(sorted(&tests), sorted(&named));
    assert_eq!(tests.len(), named.len(), "one is there twice");
}

fn sorted<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}
