//! The host ids that children may get.
//!
//! Runs on: any process.

/// Where the ids start unless the host's own namespace maps fewer: a range that neither
/// distributions nor systemd assign (systemd's `UIDS-GIDS`, 1879048192…).
const DEFAULT_BASE: u32 = 0x7000_0000;
const MOST_CHILDREN: u32 = 1 << 16;
/// How many are taken of a container's 65,536 ids: from the top, where accounts are least likely.
const MOST_OF_FEW: u32 = 1 << 14;

/// The start and length of the children's ids, from the text of a `uid_map`.
pub(crate) fn ids_for_children(map: &str) -> Option<(u32, u32)> {
    const ORDINARY_IDS: u32 = 10_000; // accounts of the container itself
    const NOBODY: u32 = 65_534; // owns nothing, yet what is unmapped appears as owned by it
    for line in map.lines() {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [inside, _, length] = numbers[..] else {
            return None;
        };
        let end = inside + length;
        if inside <= DEFAULT_BASE.into() && end >= u64::from(DEFAULT_BASE + MOST_CHILDREN) {
            return Some((DEFAULT_BASE, MOST_CHILDREN));
        }
        let start = inside.max(ORDINARY_IDS.into()) as u32;
        let end = end.min(NOBODY.into()) as u32;
        if end >= start + 1_000 {
            let count = (end - start).min(MOST_OF_FEW);
            return Some((end - count, count));
        }
    }
    None
}

/// Whether children have ids that are not this process's own. Without, outside they are the user who started the host.
pub(super) fn children_have_their_own() -> std::io::Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    Ok(ids_for_children(&map).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_id_space_gives_the_default_range() {
        let map = "         0          0 4294967295\n";
        assert_eq!(ids_for_children(map), Some((DEFAULT_BASE, MOST_CHILDREN)));
    }

    #[test]
    fn a_container_with_65536_ids_gives_the_top_ones() {
        let top = (65_534 - MOST_OF_FEW, MOST_OF_FEW);
        assert_eq!(ids_for_children("0 100000 65536\n"), Some(top));
        assert_eq!(ids_for_children("0 100000 12000\n"), Some((10_000, 2_000)));
    }

    #[test]
    fn a_single_id_is_too_few() {
        assert_eq!(ids_for_children("1000 1000 1\n"), None);
    }
}
