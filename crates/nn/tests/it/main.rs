//! Backbones against recorded numbers, and the waist: layouts, groups, hooks, borders between blocks.

#![allow(clippy::unwrap_used)]

mod blocks;
mod families;
mod layouts;
mod mapped;
mod recorded;
mod support;
mod towers;
mod waist;
