//! `consent-gate`: Didomi consent events from RabbitMQ to Selligent, through a campaign's gate.
//!
//! The modules in reading order: [`worker::intake`] takes an event and [`worker`] handles it. The event is read by
//! [`event`] and [`mapping`] ([`plan`] puts the two together), waits for its turn in the [`record::sequencer`], is merged
//! into its person's [`record`], is sent by [`gate`], judged by [`verdict`] and settled by [`broker::settler`].

pub mod worker;

pub mod event;
pub mod gate;
pub mod integration;
pub mod mapping;
pub mod plan;
pub mod record;
pub mod schedule;
pub mod verdict;

pub mod broker;
pub mod observe;

pub mod cli;
pub mod config;
pub mod ops;
pub mod serve;

mod bytes;
pub mod task;
pub mod text;
