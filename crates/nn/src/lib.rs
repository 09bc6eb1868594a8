//! Backbones: blocks, sites, hooks, parameter trees.
