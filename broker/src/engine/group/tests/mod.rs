//! Tests of the parts of consumer groups that live in memory alone.

mod assignment;
mod home;
mod home_at_random;
mod making;
