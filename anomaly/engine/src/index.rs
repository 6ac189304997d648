//! From the hash of a client to its place: open addressing with linear probing.
//!
//! A record whose client is in no cache of the processor pays for each line of memory it touches. Here it touches one: a
//! bucket is eight bytes, half a hash and a place, and neighbours are probed in the line that is there already. A table that keeps
//! its tags elsewhere (hashbrown) touches two, and offers no way to prefetch a bucket. Removing moves what
//! follows back (Knuth, TAOCP 3, 6.4, algorithm R), so that there are no tombstones to probe past.

/// Buckets that [`Index::find_any`] looks at without a branch.
const NEAR: usize = 4;

/// The table. Hashes come from a keyed hash, so that nobody can choose addresses that collide.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The hash in the upper half, the place and one in the lower; 0 is free. As many as a power of two, or none.
    buckets: Vec<u64>,
    len: usize,
}

impl Index {
    /// At most five of eight buckets are in use: then a probe looks at 1.8 of them on average.
    const fn room(buckets: usize) -> usize {
        buckets / 8 * 5
    }

    /// Entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Heap bytes.
    pub const fn heap_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<u64>()
    }

    fn mask(&self) -> usize {
        self.buckets.len().wrapping_sub(1)
    }

    /// Reads where an entry of this hash would be, so that it is in the processor's cache; the answer means nothing.
    pub fn touch(&self, hash: u32) -> u64 {
        self.buckets.get(hash as usize & self.mask()).copied().unwrap_or(0)
    }

    /// The bucket of the first entry with this hash whose place is the wanted one.
    fn bucket(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let mask = self.mask();
        let mut at = hash as usize & mask;
        loop {
            match *self.buckets.get(at)? {
                0 => return None,
                bucket if (bucket >> 32) as u32 == hash && is_it(bucket as u32 - 1) => return Some(at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The place of an entry with this hash.
    #[inline]
    pub fn find_any(&self, hash: u32) -> Option<u32> {
        // How far a probe must go cannot be foretold, so the nearest buckets are all looked at: most entries are in one of them.
        let mask = self.mask();
        let near = (0..NEAR).rev().filter_map(|step| self.buckets.get((hash as usize + step) & mask));
        let found = near.fold(0, |found, bucket| if (bucket >> 32) as u32 == hash { *bucket as u32 } else { found });
        if found != 0 { Some(found - 1) } else { self.find(hash, |_| true) }
    }

    /// The place of the first entry with this hash whose place is the wanted one.
    pub fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.bucket(hash, is_it).map(|at| self.buckets[at] as u32 - 1)
    }

    /// Adds an entry, which must not be there, for a place below 2^32 - 1.
    pub fn insert(&mut self, hash: u32, place: u32) {
        if self.len >= Self::room(self.buckets.len()) {
            let larger = (self.buckets.len() * 2).max(16);
            let old = std::mem::replace(&mut self.buckets, vec![0; larger]);
            old.into_iter().filter(|bucket| *bucket != 0).for_each(|bucket| self.put(bucket));
        }
        self.put(u64::from(hash) << 32 | (u64::from(place) + 1));
        self.len += 1;
    }

    /// Puts a bucket where there is room for it.
    fn put(&mut self, bucket: u64) {
        let mask = self.mask();
        let mut at = (bucket >> 32) as usize & mask;
        while self.buckets[at] != 0 {
            at = (at + 1) & mask;
        }
        self.buckets[at] = bucket;
    }

    /// Takes an entry out; false where it is not there.
    pub fn remove(&mut self, hash: u32, place: u32) -> bool {
        let Some(mut hole) = self.bucket(hash, |other| other == place) else { return false };
        let mask = self.mask();
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let bucket = self.buckets[at];
            if bucket == 0 {
                break;
            }
            // It may move back to the hole, but not before the bucket it would like best.
            let wanted = (bucket >> 32) as usize & mask;
            if at.wrapping_sub(wanted) & mask >= at.wrapping_sub(hole) & mask {
                self.buckets[hole] = bucket;
                hole = at;
            }
        }
        self.buckets[hole] = 0;
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Few hashes, so that they collide, and those around the end of the table, so that probing goes round.
        #[test]
        fn equals_a_hash_map(steps in proptest::collection::vec((0u32..64, prop_oneof![Just(0u32), Just(u32::MAX - 20)], any::<bool>()), 1..600)) {
            let (mut index, mut model) = (Index::default(), HashMap::new());
            for (place, base, insert) in steps {
                let hash = base.wrapping_add(place % 24);
                if insert {
                    if let Some(before) = model.insert(place, hash) {
                        prop_assert!(index.remove(before, place));
                    }
                    index.insert(hash, place);
                } else if let Some(hash) = model.remove(&place) {
                    prop_assert!(index.remove(hash, place));
                    prop_assert!(!index.remove(hash, place));
                }
                prop_assert_eq!(index.len(), model.len());
                for (place, hash) in &model {
                    prop_assert_eq!(index.find(*hash, |p| p == *place), Some(*place));
                    prop_assert!(index.find_any(*hash).is_some_and(|place| model.get(&place) == Some(hash)));
                }
                let gone = base.wrapping_add(30);
                prop_assert_eq!(index.find_any(gone).is_some(), model.values().any(|hash| *hash == gone));
            }
        }
    }

    #[test]
    fn an_empty_one_holds_nothing() {
        let mut index = Index::default();
        assert_eq!((index.find(7, |_| true), index.touch(7), index.remove(7, 1), index.len()), (None, 0, false, 0));
        assert_eq!(index.find_any(0), None);
    }

    #[test]
    fn grows_and_shrinks_without_losing_any() {
        let mut index = Index::default();
        let hash = |n: u32| n.wrapping_mul(0x9e37_79b1);
        (0..10_000).for_each(|n| index.insert(hash(n), n));
        (0..10_000).step_by(3).for_each(|n| assert!(index.remove(hash(n), n)));
        for n in 0..10_000 {
            assert_eq!(index.find(hash(n), |p| p == n), (n % 3 != 0).then_some(n));
        }
        assert_eq!(index.len(), 6_666);
    }
}
