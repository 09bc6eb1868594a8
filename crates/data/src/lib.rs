//! Datasets: manifests, readers, tokenising, deterministic cursors, batches.
