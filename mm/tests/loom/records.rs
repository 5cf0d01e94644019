//! Threads that free the same frame.

use loom::sync::Arc;
use loom::thread;

use crate::record::{FrameRecord, State};

#[test]
fn of_two_who_free_a_run_one_succeeds() {
    loom::model(|| {
        let record = Arc::new(FrameRecord::default());
        record.set(State::Used { frames: 3 });
        let other = record.clone();
        let thread = thread::spawn(move || other.take_back(3).is_ok());
        let here = record.take_back(3).is_ok();
        assert_ne!(here, thread.join().unwrap());
        assert_eq!(record.state(), State::Held);
    });
}
