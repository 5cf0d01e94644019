//! Slots of one type, cut from table pages of the host kernel.
//!
//! The bookkeeping of IOVAs and of dropped mappings must not touch the heap while a driver maps or unmaps, and giving
//! back must not fail. So slots are *reserved* while something can still fail, and a reserved slot is there when it is
//! taken.
//!
//! Each page starts with a [`Page`] header; a slot finds its page by clearing the low bits of its own address.

use core::{
    cell::Cell,
    marker::PhantomData,
    mem::{align_of, size_of},
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef, intrusive_adapter};
use mm::{PAGE_BYTES, PhysAddr, table::TableMemory};

/// A slot that its holder owns, like a box. Dropping it loses the slot until the slab itself is dropped.
pub(crate) struct Slot<T>(NonNull<T>);

// SAFETY: a slot is the only way to its value, as a box is.
unsafe impl<T: Send> Send for Slot<T> {}

impl<T> Slot<T> {
    /// The slot as a link of an intrusive collection.
    pub fn into_ref(self) -> UnsafeRef<T> {
        // SAFETY: the slot stays where it is until `from_ref` makes it one owner's again.
        unsafe { UnsafeRef::from_raw(self.0.as_ptr()) }
    }

    /// Undoes [`into_ref`](Self::into_ref).
    ///
    /// # Safety
    /// `value` came from `into_ref` and no clone of it is used any more; it is in no collection.
    pub unsafe fn from_ref(value: UnsafeRef<T>) -> Self {
        // SAFETY: a reference is not null.
        Self(unsafe { NonNull::new_unchecked(UnsafeRef::into_raw(value)) })
    }
}

impl<T> Deref for Slot<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the slot was initialised when it was taken and is owned by `self`; the slab outlives it
        // (`Slab::new`).
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Slot<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed for as long as the value is.
        unsafe { self.0.as_mut() }
    }
}

/// What a free slot holds.
struct FreeSlot {
    next: Option<NonNull<FreeSlot>>,
}

/// Header of a page.
struct Page {
    link: LinkedListLink,
    frame: PhysAddr,
    free: Cell<Option<NonNull<FreeSlot>>>,
    used: Cell<usize>,
}

intrusive_adapter!(PageLink = UnsafeRef<Page>: Page { link => LinkedListLink });

/// A stock of slots for values of type `T`, which are never dropped.
pub(crate) struct Slab<T> {
    /// Pages with a free slot come first, full ones last.
    pages: LinkedList<PageLink>,
    page_count: usize,
    /// Free slots in all pages: at least as many as are reserved.
    free: usize,
    reserved: usize,
    values: PhantomData<T>,
}

// SAFETY: all pages belong to the slab alone, and what it lends out are slots that nothing else refers to.
unsafe impl<T: Send> Send for Slab<T> {}

impl<T> Slab<T> {
    const ALIGN: usize =
        if align_of::<T>() > align_of::<FreeSlot>() { align_of::<T>() } else { align_of::<FreeSlot>() };
    const STRIDE: usize = size_of::<T>().next_multiple_of(Self::ALIGN);
    const FIRST: usize = size_of::<Page>().next_multiple_of(Self::ALIGN);
    /// Slots in a page.
    pub const PER_PAGE: usize = (PAGE_BYTES as usize - Self::FIRST) / Self::STRIDE;

    /// An empty slab.
    ///
    /// # Safety
    /// No slot is used after the slab has been dropped, all calls get the same table memory, and
    /// [`release`](Self::release) is the last of them.
    pub unsafe fn new() -> Self {
        const { assert!(size_of::<T>() >= size_of::<FreeSlot>() && Self::PER_PAGE > 0) };
        Self {
            pages: LinkedList::new(PageLink::new()),
            page_count: 0,
            free: 0,
            reserved: 0,
            values: PhantomData,
        }
    }

    /// Pages in use.
    pub fn pages(&self) -> usize {
        self.page_count
    }

    /// Sets `count` more slots aside for [`take_reserved`](Self::take_reserved). `false`, and nothing set aside, if the
    /// pages for them are not to be had.
    #[must_use]
    pub fn reserve<M: TableMemory>(&mut self, tables: &M, count: usize) -> bool {
        while self.free < self.reserved + count {
            let Some(frame) = tables.allocate() else { return false };
            self.add_page(tables, frame);
        }
        self.reserved += count;
        true
    }

    /// Gives up the reservation of `count` slots.
    pub fn unreserve(&mut self, count: usize) {
        debug_assert!(count <= self.reserved, "more reservations given up than made");
        self.reserved = self.reserved.saturating_sub(count);
    }

    /// A reserved slot. `None` without a reservation.
    pub fn take_reserved(&mut self, value: T) -> Option<Slot<T>> {
        let reserved = self.reserved.checked_sub(1)?;
        let page = self.pages.front().clone_pointer()?;
        let slot = page.free.get()?;
        self.reserved = reserved;
        self.free -= 1;
        page.used.set(page.used.get() + 1);
        // SAFETY: a slot on the free list holds a `FreeSlot` and nothing refers to it.
        page.free.set(unsafe { slot.read() }.next);
        if page.free.get().is_none()
            && let Some(full) = self.pages.pop_front()
        {
            self.pages.push_back(full);
        }
        let slot = slot.cast::<T>();
        // SAFETY: the slot has room for a `T` (`STRIDE`), is aligned for it (`FIRST`, `STRIDE`) and is ours alone.
        unsafe { slot.write(value) };
        Some(Slot(slot))
    }

    /// A slot that was not reserved.
    pub fn take<M: TableMemory>(&mut self, tables: &M, value: T) -> Option<Slot<T>> {
        if self.reserve(tables, 1) { self.take_reserved(value) } else { None }
    }

    /// Takes a slot back, and gives its page to the host if it is empty and a page's worth of spare slots remains.
    pub fn put<M: TableMemory>(&mut self, tables: &M, slot: Slot<T>) {
        let page = Self::page_of(&slot);
        let free = slot.0.cast::<FreeSlot>();
        // SAFETY: the slot is owned, has room for a `FreeSlot`, and its value is not used any more.
        unsafe { free.write(FreeSlot { next: page.free.get() }) };
        let was_full = page.free.replace(Some(free)).is_none();
        page.used.set(page.used.get() - 1);
        self.free += 1;
        if was_full {
            self.unlink(&page);
            self.pages.push_front(page.clone());
        }
        if page.used.get() == 0 && self.free >= self.reserved + 2 * Self::PER_PAGE {
            self.remove_page(tables, page);
        }
    }

    /// Gives every empty page that no reservation needs to the host.
    pub fn trim<M: TableMemory>(&mut self, tables: &M) {
        let mut cursor = self.pages.front_mut();
        while let Some(page) = cursor.get() {
            if page.used.get() > 0 || self.free < self.reserved + Self::PER_PAGE {
                cursor.move_next();
                continue;
            }
            let Some(page) = cursor.remove() else { return };
            self.page_count -= 1;
            self.free -= Self::PER_PAGE;
            // SAFETY: none of the page's slots is in use, and it is in no list any more.
            unsafe { give_back(tables, page) };
        }
    }

    /// Gives all pages to the host, whether their slots came back or not.
    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        (self.free, self.reserved, self.page_count) = (0, 0, 0);
        while let Some(page) = self.pages.pop_front() {
            // SAFETY: the page is in no list any more, and by the contract of `new` no slot in it is used.
            unsafe { give_back(tables, page) };
        }
    }

    fn add_page<M: TableMemory>(&mut self, tables: &M, frame: PhysAddr) {
        // SAFETY: the frame has just been allocated and is freed only by `remove_page` and `release`.
        let table = NonNull::from(unsafe { tables.table(frame) }).cast::<u8>();
        let mut free = None;
        for index in (0..Self::PER_PAGE).rev() {
            // SAFETY: the slot lies within the page (`PER_PAGE`) and is aligned (`FIRST`, `STRIDE`); a table is made of
            // atomics, so it may be written through a pointer made from a shared reference.
            unsafe {
                let slot = table.add(Self::FIRST + index * Self::STRIDE).cast::<FreeSlot>();
                slot.write(FreeSlot { next: free });
                free = Some(slot);
            }
        }
        let page = table.cast::<Page>();
        // SAFETY: the header lies at the start of the page, before the first slot.
        let page = unsafe {
            page.write(Page {
                link: LinkedListLink::new(),
                frame,
                free: Cell::new(free),
                used: Cell::new(0),
            });
            UnsafeRef::from_raw(page.as_ptr())
        };
        self.pages.push_front(page);
        self.page_count += 1;
        self.free += Self::PER_PAGE;
    }

    fn remove_page<M: TableMemory>(&mut self, tables: &M, page: UnsafeRef<Page>) {
        self.unlink(&page);
        self.page_count -= 1;
        self.free -= Self::PER_PAGE;
        // SAFETY: none of the page's slots is in use, and it is in no list any more.
        unsafe { give_back(tables, page) };
    }

    fn unlink(&mut self, page: &UnsafeRef<Page>) {
        let page = UnsafeRef::into_raw(page.clone());
        // SAFETY: every page that has a slot in use, or that was found in the list, is in the list.
        unsafe { self.pages.cursor_mut_from_ptr(page) }.remove();
    }

    fn page_of(slot: &Slot<T>) -> UnsafeRef<Page> {
        let page = slot.0.as_ptr().cast::<Page>().map_addr(|address| address & !(PAGE_BYTES as usize - 1));
        // SAFETY: the slot was cut from a page whose header is at its start; the pointer still reaches all of the page.
        unsafe { UnsafeRef::from_raw(page) }
    }
}

/// Gives `page` to the host, which expects zeros.
///
/// # Safety
/// The page came from `tables`; nothing refers to it or to a slot of it any more.
unsafe fn give_back<M: TableMemory>(tables: &M, page: UnsafeRef<Page>) {
    let frame = page.frame;
    let page = UnsafeRef::into_raw(page).cast::<u8>();
    // SAFETY: the pointer reaches the whole page, which is ours alone until it is freed.
    unsafe {
        page.write_bytes(0, PAGE_BYTES as usize);
        tables.free(frame);
    }
}
