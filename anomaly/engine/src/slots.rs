//! The events of a window as numbers of 16 bits, so that those of nearly every client fit into the client itself.
//!
//! An event begins with a head: second and class. A head alone is one request. With one slot of data behind it is as many as
//! that says, and with two it is one request to the path that they say. That is all there is to tell the kinds apart, so a
//! list is read from either end, and two slots of data in a row are always a path.

use super::kind::Kind;

/// Slots that are kept inside the window itself: with them, a client is two cache lines.
pub const INLINE: usize = 27;

/// Seconds are kept modulo this. The events of a window lie at most 600 s apart, so an age below it is exact.
pub const SECS: u32 = 1 << CLASS_SHIFT;
const CLASS_SHIFT: u32 = 10;
const CLASS: u16 = (Kind::ASSET | Kind::ERROR | Kind::CLIENT_ERROR | Kind::POST) as u16;
/// In a head: [`Kind::POST`].
pub const POST: u16 = (Kind::POST as u16) << CLASS_SHIFT;
/// In a head: no newer request to its path was answered 4xx.
pub const NEWEST: u16 = 1 << 14;
const _: () = assert!((CLASS + 1) << CLASS_SHIFT == NEWEST);
/// Marks a slot that is no head but belongs to the one before it.
pub const DATA: u16 = 1 << 15;
/// A merged event that stands for more requests is followed by another one.
pub const MAX_COUNT: u32 = DATA as u32 - 1;

/// The first slot of an event.
pub const fn head(sec: u32, kind: Kind) -> u16 {
    (sec % SECS) as u16 | (kind.bits() as u16) << CLASS_SHIFT
}

/// Seconds from a head to `newest`.
pub const fn age(head: u16, newest: u32) -> u32 {
    newest.wrapping_sub(head as u32) % SECS
}

/// The class in a head.
pub const fn kind_of(head: u16) -> Kind {
    Kind::from_bits((head >> CLASS_SHIFT & CLASS) as u8)
}

/// The slots behind a head that hold its path.
pub const fn path_data(path: u32) -> [u16; 2] {
    [path as u16 | DATA, (path >> 15) as u16 | DATA]
}

/// The slots of one event.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a>(pub &'a [u16]);

impl Event<'_> {
    /// Its first slot.
    pub const fn head(self) -> u16 {
        self.0[0]
    }

    /// Its class.
    pub const fn kind(self) -> Kind {
        kind_of(self.head())
    }

    /// Seconds from it to `newest`.
    pub const fn age(self, newest: u32) -> u32 {
        age(self.head(), newest)
    }

    /// How many requests it stands for.
    pub const fn count(self) -> u32 {
        if let [_, count] = self.0 { (*count & !DATA) as u32 } else { 1 }
    }

    /// Its path's hash.
    pub const fn path(self) -> Option<u32> {
        if let [_, low, high] = self.0 { Some((*low & !DATA) as u32 | ((*high & !DATA) as u32) << 15) } else { None }
    }
}

/// The events of a window, oldest first.
#[derive(Clone, Debug)]
pub enum Slots {
    /// Here.
    Few {
        /// Slots in use.
        len: u8,
        /// All there is room for.
        at: [u16; INLINE],
    },
    /// Elsewhere.
    Many(Vec<u16>),
}

impl Slots {
    /// None.
    pub const EMPTY: Self = Self::Few { len: 0, at: [0; INLINE] };

    /// A whole list.
    pub fn of(slots: Vec<u16>) -> Self {
        if slots.len() <= INLINE { Self::few(&slots) } else { Self::Many(slots) }
    }

    /// Whether they are elsewhere.
    pub const fn has_list(&self) -> bool {
        matches!(self, Self::Many(_))
    }

    /// Heap bytes.
    pub const fn heap_bytes(&self) -> usize {
        if let Self::Many(slots) = self { slots.capacity() * size_of::<u16>() } else { 0 }
    }

    /// All slots.
    pub fn as_slice(&self) -> &[u16] {
        match self {
            Self::Few { len, at } => &at[..*len as usize],
            Self::Many(slots) => slots,
        }
    }

    /// All slots.
    pub fn as_mut_slice(&mut self) -> &mut [u16] {
        match self {
            Self::Few { len, at } => &mut at[..*len as usize],
            Self::Many(slots) => slots,
        }
    }

    /// Puts slots before the one at `index`, which almost always is the end, and there is room.
    #[inline]
    pub fn insert<const N: usize>(&mut self, index: usize, new: [u16; N]) {
        match self {
            Self::Few { len, at } if index == *len as usize && index + N <= INLINE => {
                at[index..index + N].copy_from_slice(&new);
                *len += N as u8;
            }
            _ => self.insert_anywhere(index, &new),
        }
    }

    #[inline(never)]
    fn insert_anywhere(&mut self, index: usize, new: &[u16]) {
        if let Self::Few { len, at } = self {
            let (end, more) = (*len as usize, new.len());
            if end + more <= INLINE {
                at.copy_within(index..end, index + more);
                at[index..index + more].copy_from_slice(new);
                *len += more as u8;
                return;
            }
            let mut slots = Vec::with_capacity(2 * INLINE + 2);
            slots.extend_from_slice(&at[..end]);
            *self = Self::Many(slots);
        }
        if let Self::Many(slots) = self {
            slots.extend_from_slice(new);
            slots[index..].rotate_right(new.len());
        }
    }

    /// Lets go of the first `n` slots.
    pub fn drop_first(&mut self, n: usize) {
        match self {
            Self::Few { len, at } => {
                // One or two events are the rule; all are moved then, which costs less than to see how many there are.
                match n {
                    1 => at.copy_within(1.., 0),
                    2 => at.copy_within(2.., 0),
                    3 => at.copy_within(3.., 0),
                    _ => at.copy_within(n..*len as usize, 0),
                }
                *len -= n as u8;
            }
            Self::Many(slots) if slots.len() - n <= INLINE / 2 + 1 => *self = Self::few(&slots[n..]),
            Self::Many(slots) => {
                slots.drain(..n);
            }
        }
    }

    /// A list that fits here.
    fn few(slots: &[u16]) -> Self {
        let mut at = [0; INLINE];
        at[..slots.len()].copy_from_slice(slots);
        Self::Few { len: slots.len() as u8, at }
    }
}

/// The events in a list, oldest first.
pub fn events(mut slots: &[u16]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        // How many slots it has cannot be foretold, so no branch is made of it.
        let is_data = |index| slots.get(index).map_or(0, |slot: &u16| usize::from(slot >> 15));
        let (first, second) = (is_data(1), is_data(2));
        let event;
        (event, slots) = slots.split_at_checked(1 + first + (first & second))?;
        Some(Event(event))
    })
}

/// Where the heads of a path's events are that have a bit.
pub fn of_path(slots: &[u16], path: u32, bit: u16) -> impl Iterator<Item = usize> {
    let [low, high] = path_data(path);
    let is_one = move |three: &[u16]| three[1] == low && three[2] == high && three[0] & bit != 0;
    slots.windows(3).enumerate().filter(move |(_, three)| is_one(three)).map(|(index, _)| index)
}

/// The newest event before the slot `end`, where another one begins or the list ends.
pub fn event_before(slots: &[u16], end: usize) -> Option<(usize, Event<'_>)> {
    let index = slots[..end].iter().rposition(|slot| slot & DATA == 0)?;
    Some((index, Event(&slots[index..end])))
}
