//! What the README says of the code is what the code is.

const README: &str = include_str!("../../README.md");
const EMBED: &str = include_str!("../src/bin/embed.rs");

#[test]
fn the_readme_shows_the_embedding_program_as_it_is() {
    let blocks: Vec<&str> = README
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(
        blocks.contains(&EMBED),
        "no code block of README.md is examples/src/bin/embed.rs"
    );
}

#[test]
fn an_embedders_main_has_at_most_40_lines() {
    let begin = EMBED.find("fn main()").expect("there is a main");
    let main = &EMBED[begin..];
    let end = main.find("\n}\n").expect("main ends");
    let lines = main[..end].lines().count() + 1;
    assert!(lines <= 40, "{lines} lines");
}
