//! What the agents tell while they decide.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt as format};

/// The decisions of all agents, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<Decision>>>);

/// A decision, as an agent logs it.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) at: Instant,
    pub(crate) node: String,
    pub(crate) rule: String,
    pub(crate) why: String,
}

impl Told {
    /// Returns the decisions from the `begin`th on.
    pub(crate) fn since(&self, begin: usize) -> Vec<Decision> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(begin..).unwrap_or_default().to_vec()
    }

    /// Returns the last decision of a node.
    pub(crate) fn last_of(&self, node: &str) -> Option<Decision> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter()
            .rev()
            .find(|decision| decision.node == node)
            .cloned()
    }
}

/// Begins to listen; writes everything that is logged to `log` as well.
pub(crate) fn start(log: Option<&Path>) -> Result<Told> {
    let told = Told::default();
    let file = match log {
        None => None,
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("--log: cannot write {}", path.display()))?;
            Some(
                format::layer()
                    .with_ansi(false)
                    .with_writer(Mutex::new(file)),
            )
        }
    };
    tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(told.clone())
        .with(file)
        .try_init()
        .context("cannot listen to the agents")?;
    Ok(told)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Told {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(node) = fields.node
        {
            span.extensions_mut().insert(NodeOf(node));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // The way in which a replica is made is not the core's to decide, and is told all the same.
        let way = fields.message.strip_prefix("clone: ");
        let way = way.filter(|way| way.contains("the backup ") || way.contains("a backup: "));
        let (rule, why) = match (fields.rule, way) {
            (Some(rule), _) => (rule, fields.message),
            (None, Some(way)) => ("Clone".to_owned(), way.to_owned()),
            (None, None) => return,
        };
        let node = context.event_scope(event).and_then(|mut spans| {
            spans.find_map(|span| span.extensions().get::<NodeOf>().map(|node| node.0.clone()))
        });
        let Some(node) = node else { return };
        let decision = Decision {
            at: Instant::now(),
            node,
            rule,
            why,
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(decision);
    }
}

/// Whose span it is.
struct NodeOf(String);

#[derive(Default)]
struct Fields {
    node: Option<String>,
    rule: Option<String>,
    message: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "node" => self.node = Some(value.to_owned()),
            "rule" => self.rule = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
