//! Futures of the suite's own: it must run on any runtime, and so brings none.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// What the methods of an object-safe async trait return.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs futures side by side and returns their results in order.
pub(super) async fn all<T: Send>(mut futures: Vec<Boxed<'_, T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// Polls a future at most `polls` times, then drops it; returns its result if it was done.
pub(super) async fn dropped_after<T>(mut future: Boxed<'_, T>, mut polls: u32) -> Option<T> {
    poll_fn(|cx| {
        polls = polls.saturating_sub(1);
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            // Not waited for: it is dropped right after the poll that left something in flight.
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Returns the result of a future, and how often it was polled for it.
pub(super) async fn counted<T>(mut future: Boxed<'_, T>) -> (T, u32) {
    let mut polls = 0;
    let result = poll_fn(|cx| {
        polls += 1;
        future.as_mut().poll(cx)
    })
    .await;
    (result, polls)
}

/// Returns the result of `first` unless `second` is done earlier.
pub(super) async fn either<T>(mut first: Boxed<'_, T>, mut second: Boxed<'_, ()>) -> Option<T> {
    poll_fn(|cx| {
        if let Poll::Ready(value) = first.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        second.as_mut().poll(cx).map(|()| None)
    })
    .await
}
