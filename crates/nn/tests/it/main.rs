//! Backbones against recorded numbers, and the waist: layouts, groups, hooks, borders between blocks.

mod blocks;
mod families;
mod layouts;
mod support;
mod waist;
