//! `consent-gate`: Didomi consent events from RabbitMQ to Selligent, through a campaign's gate.
//!
//! The modules in reading order: [`intake`] takes an event and [`worker`] handles it. The event is read by [`event`]
//! and [`mapping`] ([`plan`] puts the two together), waits for its turn in the [`sequencer`], is merged into its person's
//! [`record`], is sent by [`gate`], judged by [`verdict`] and settled by [`broker::settler`].

pub mod intake;
pub mod quarantine;
pub mod worker;

pub mod event;
pub mod filter;
pub mod gate;
pub mod mapping;
pub mod plan;
pub mod record;
pub mod schedule;
pub mod sequencer;
pub mod verdict;

pub mod broker;
pub mod facts;
pub mod hearing;
pub mod metrics;
mod remedy;

pub mod admin;
pub mod audit;
mod bytes;
pub mod fleet;
mod json;
pub mod serve;
pub mod shown;
pub mod shutdown;
pub mod suggest;
pub mod supervisor;
pub mod systemd;
pub mod task;
pub mod telemetry;
pub mod traces;

pub mod cli;
pub mod config;
pub mod integration;
pub mod ops;
