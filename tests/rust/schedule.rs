//! Transcripts of the scheduler: inputs written down, effects compared word for word.

mod cancelling;
mod growing;
mod preparing;
mod properties;
mod running;
mod transcript;
