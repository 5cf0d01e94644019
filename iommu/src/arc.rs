//! Shared ownership whose memory can be refused.
//!
//! `Arc::new` ends the kernel if there is no memory, and stable Rust has no `Arc::try_new`. What is shared from
//! bring-up on is in an `Arc`; what a claim, a pool or a change of the hierarchy shares is in a [`TryArc`]. It counts
//! as the standard library's does, without weak pointers.

use alloc::{alloc::alloc, boxed::Box};
use core::{
    alloc::Layout,
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
    ops::Deref,
    ptr::{self, NonNull},
    sync::atomic::{AtomicUsize, Ordering, fence},
};

use crate::dma::{shared::Shares, space::Space, tenure::Tenure};

/// An `Arc` that is made only if there is memory for it.
pub(crate) struct TryArc<T: ?Sized> {
    inner: NonNull<Inner<T>>,
    owns: PhantomData<Inner<T>>,
}

struct Inner<T: ?Sized> {
    owners: AtomicUsize,
    value: T,
}

/// More owners than memory has room for: only one that forgets them in a loop gets there.
const MAX_OWNERS: usize = isize::MAX as usize;

/// Memory for a value that is not made yet: so that what can fail comes before what would have to be undone.
pub(crate) struct Room<T>(Box<MaybeUninit<Inner<T>>>);

impl<T> Room<T> {
    /// `None` if there is no memory.
    pub fn try_new() -> Option<Self> {
        // SAFETY: there is a count in it, so that the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc(Layout::new::<Inner<T>>()) })?;
        // SAFETY: allocated just now as a box of this type is, and its bytes may be anything.
        Some(Self(unsafe { Box::from_raw(memory.as_ptr().cast()) }))
    }

    /// Moves `value` there. Cannot fail.
    pub fn fill(mut self, value: T) -> TryArc<T> {
        self.0.write(Inner { owners: AtomicUsize::new(1), value });
        TryArc { inner: NonNull::from(Box::leak(self.0)).cast(), owns: PhantomData }
    }
}

impl<T> TryArc<T> {
    /// `None`, and no `value` any more, if there is no memory.
    pub fn try_new(value: T) -> Option<Self> {
        Room::try_new().map(|room| room.fill(value))
    }
}

impl<T: ?Sized> TryArc<T> {
    /// Whether both are the same value.
    pub fn ptr_eq(one: &Self, other: &Self) -> bool {
        ptr::addr_eq(one.inner.as_ptr(), other.inner.as_ptr())
    }

    #[inline]
    fn inner(&self) -> &Inner<T> {
        // SAFETY: the value lives as long as it has an owner, which this is, and is never borrowed exclusively.
        unsafe { self.inner.as_ref() }
    }

    /// The pointer, with its share.
    fn into_inner(self) -> NonNull<Inner<T>> {
        ManuallyDrop::new(self).inner
    }

    /// After the last owner let go.
    #[cold]
    #[inline(never)]
    fn free(&mut self) {
        // What all others did with the value comes before its end.
        fence(Ordering::Acquire);
        // SAFETY: it was a box that `fill` leaked, and this is its last owner, which does not use it again.
        drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
    }
}

// Stable Rust cannot say "whatever `T` unsizes to", only do it: once for each trait.

impl<S: Space + 'static> From<TryArc<S>> for TryArc<dyn Space> {
    fn from(space: TryArc<S>) -> Self {
        Self { inner: space.into_inner(), owns: PhantomData }
    }
}

impl<S: Shares + 'static> From<TryArc<S>> for TryArc<dyn Shares> {
    fn from(space: TryArc<S>) -> Self {
        Self { inner: space.into_inner(), owns: PhantomData }
    }
}

impl<F: Tenure + 'static> From<TryArc<F>> for TryArc<dyn Tenure> {
    fn from(faults: TryArc<F>) -> Self {
        Self { inner: faults.into_inner(), owns: PhantomData }
    }
}

impl<T: ?Sized> Clone for TryArc<T> {
    #[inline]
    fn clone(&self) -> Self {
        // Who clones has seen the value already: nothing is to be ordered.
        let owners = self.inner().owners.fetch_add(1, Ordering::Relaxed);
        assert!(owners <= MAX_OWNERS, "owners of a value are forgotten without end");
        Self { inner: self.inner, owns: PhantomData }
    }
}

impl<T: ?Sized> Drop for TryArc<T> {
    #[inline]
    fn drop(&mut self) {
        if self.inner().owners.fetch_sub(1, Ordering::Release) == 1 {
            self.free();
        }
    }
}

impl<T: ?Sized> Deref for TryArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner().value
    }
}

// SAFETY: each owner may read the value wherever it is (`Sync`), and the last one, wherever that is, drops it (`Send`).
unsafe impl<T: ?Sized + Send + Sync> Send for TryArc<T> {}
// SAFETY: a reference to an owner is enough to clone it; the rest as for `Send`.
unsafe impl<T: ?Sized + Send + Sync> Sync for TryArc<T> {}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::{Incident, dma::FaultCounts};

    /// Tells when it is dropped.
    struct Told(mpsc::Sender<u64>, u64);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(self.1);
        }
    }

    #[test]
    fn the_last_owner_drops_the_value_once() {
        let (sender, receiver) = mpsc::channel();
        let one = TryArc::try_new(Told(sender, 7)).expect("memory");
        let other = one.clone();
        assert!(TryArc::ptr_eq(&one, &other));
        drop(one);
        assert_eq!((other.1, receiver.try_recv().ok()), (7, None));
        drop(other);
        assert_eq!(receiver.iter().collect::<std::vec::Vec<_>>(), [7]);
    }

    #[test]
    fn room_that_is_not_filled_goes_back() {
        drop(Room::<Told>::try_new().expect("memory"));
        let (one, other) = (TryArc::try_new(1_u8), TryArc::try_new(1_u8));
        assert!(!TryArc::ptr_eq(&one.expect("memory"), &other.expect("memory")));
    }

    #[test]
    fn values_of_any_size_and_alignment_lie_where_they_should() {
        #[repr(align(256))]
        struct Aligned(u8);

        let aligned = TryArc::try_new(Aligned(3)).expect("memory");
        assert_eq!(((&raw const *aligned).addr() % 256, aligned.0), (0, 3));
        let (sender, receiver) = mpsc::channel::<u64>();
        drop((TryArc::try_new(()).expect("memory"), sender));
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn threads_see_what_others_did_before_the_value_goes() {
        struct Counted(AtomicUsize, mpsc::Sender<usize>);

        impl Drop for Counted {
            fn drop(&mut self) {
                self.1.send(*self.0.get_mut()).expect("a receiver");
            }
        }

        const ROUNDS: usize = if cfg!(miri) { 10 } else { 1000 };
        let (sender, receiver) = mpsc::channel();
        for _ in 0..ROUNDS {
            let shared = TryArc::try_new(Counted(AtomicUsize::new(0), sender.clone())).expect("memory");
            thread::scope(|scope| {
                for _ in 0..3 {
                    let mine = shared.clone();
                    scope.spawn(move || mine.clone().0.fetch_add(1, Ordering::Relaxed));
                }
                drop(shared);
            });
            assert_eq!(receiver.try_recv(), Ok(3));
        }
    }

    /// Where such a value lies behind the count depends on the type behind the trait.
    #[repr(align(64))]
    struct Faults(Told);

    impl Tenure for Faults {
        fn faults(&self) -> FaultCounts {
            FaultCounts { own: self.0.1, unattributed: 0 }
        }

        fn listen(&self, _listener: alloc::sync::Arc<dyn Fn(Incident) + Send + Sync>) {}
    }

    #[test]
    fn a_trait_object_is_the_value_itself() {
        let (sender, receiver) = mpsc::channel();
        let kept = TryArc::try_new(Faults(Told(sender, 9))).expect("memory");
        let object = TryArc::<dyn Tenure>::from(kept.clone());
        assert_eq!(object.faults().own, 9);
        drop(kept);
        assert!(receiver.try_recv().is_err());
        drop(object);
        assert_eq!(receiver.recv(), Ok(9));
    }
}
