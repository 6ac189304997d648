//! The images of `compose/compose.yaml` without a registry: a base by mmdebstrap, and stand-ins made from it.
//!
//! Deliberately without an application: clients of the proxy do not see what is behind it.

use anyhow::Result;

use super::engine::{Engine, repository};
use crate::debian;
use crate::lab::Lab;

/// The variables of `compose.yaml` that name these images.
///
/// # Errors
/// When Debian's mirror or the engine fails.
pub fn make(lab: &Lab, engine: &Engine<'_>) -> Result<Vec<(&'static str, String)>> {
    let base = "anomaly-test/base:1";
    let archive = debian::archive()?;
    engine.docker(&["import", &archive.to_string_lossy(), base])?;
    let context = lab.dir().join("images");
    std::fs::create_dir(&context)?;
    for name in ["Dockerfile", "app.conf"] {
        std::fs::copy(repository().join("tests/compose").join(name), context.join(name))?;
    }
    std::fs::copy(env!("CARGO_BIN_EXE_anomaly"), context.join("anomaly"))?;
    let stages =
        [("NGINX_IMAGE", "nginx"), ("NEXTCLOUD_IMAGE", "app"), ("DB_IMAGE", "db"), ("BUILDER_IMAGE", "builder")];
    let mut settings = vec![("RUNTIME_IMAGE", base.to_owned())];
    for (variable, stage) in stages {
        settings.push((variable, engine.build(&context, stage, base)?));
    }
    Ok(settings)
}
