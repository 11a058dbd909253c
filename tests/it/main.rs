//! One binary: the worker, its commands and its documents, tested from outside.
//!
//! Tests with a broker read its URL from `CONSENT_GATE_TEST_BROKER_URL`; `scripts/test` starts a
//! private one and sets it.

#![allow(clippy::float_cmp, reason = "counters are whole numbers")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends at the first surprise")]

mod harness;

mod allocations;
mod arrivals;
mod aside;
mod audits;
mod chaos;
mod commands;
mod configuration;
mod copies;
mod dead;
mod delivery;
mod documents;
mod failover;
mod failures;
mod gate_simulator;
mod getting_started;
mod half_open;
mod hostile;
mod layout;
mod leaks;
mod mappings;
mod memory;
mod model;
mod newest;
mod observed;
mod outside;
mod pooler;
mod power;
mod proxies;
mod release;
mod reload;
mod restarts;
mod retries;
mod rights;
mod runbook;
mod states;
mod store;
mod supervisor;
mod surroundings;
mod suspects;
mod tls;
mod traces;
mod verdicts;
