//! How a job's arguments reach its child: in a sealed memory file, in one of two forms.

use serde::{Deserialize, Serialize};

/// The form of the arguments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// JSON, with what `pyspawner_host` tells about the job.
    #[default]
    Json,
    /// Python's pickle of a list; what `pyspawner_host` tells is here.
    Pickle {
        id: String,
        /// Seconds since the epoch.
        deadline: Option<f64>,
    },
}
