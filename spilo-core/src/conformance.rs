//! What every backend must pass, one async function for each property.
//!
//! For the tests of backends, the built-in ones and those of others. Each suite has a macro that
//! makes one test of each property; a property fails by panicking with what it saw.

pub mod backup;
pub mod dcs;
pub mod postgres;
mod waiting;
