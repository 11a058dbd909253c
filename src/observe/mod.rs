//! What people and monitoring see of the worker: facts in logs and metrics, traces, and who looked at personal data.

pub mod arrivals;
pub mod audit;
pub mod facts;
pub mod metrics;
pub mod telemetry;
pub mod traces;
