//! The detector over virtual time: scenario files, and properties that hold for any input.
//!
//! A scenario lists clients with their requests, and what must follow. It does not depend on how the engine decides, so that the
//! engine can be rewritten without touching a scenario.

#[path = "detection/brake.rs"]
mod brake;
#[path = "detection/by_hand.rs"]
mod by_hand;
#[path = "detection/evidence.rs"]
mod evidence;
#[path = "detection/golden.rs"]
pub mod golden;
#[path = "detection/properties.rs"]
mod properties;
#[path = "detection/scenario.rs"]
mod scenario;
#[path = "detection/spared.rs"]
mod spared;
#[path = "detection/warmup.rs"]
mod warmup;

use std::path::Path;

/// Every file in `tests/scenarios` is one test; all are run, and all that fail are named.
#[test]
fn scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("the scenarios").flatten().map(|e| e.path()).collect();
    files.sort();
    assert!(files.len() >= 10, "scenarios are missing: {files:?}");
    let failed: Vec<String> = files
        .iter()
        .filter_map(|file| {
            let text = std::fs::read_to_string(file).expect("a scenario");
            scenario::check(&text).err().map(|e| format!("{}: {e}", file.display()))
        })
        .collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}
