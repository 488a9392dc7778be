//! Questions to the kernel about devices, routes and filters, asked and answered at once.

use std::{future::Future, io, thread};

use rtnetlink::Handle;

use super::error::{MeterError, cause};

/// Runs `question` with a netlink connection of its own and waits for the answer.
///
/// On a thread of its own (it starts in the caller's network namespace), so that it works with and
/// without an async runtime around it, and also while unwinding.
///
/// # Errors
///
/// [`MeterError::Netlink`] with what `question` failed with, or why it could not be asked.
pub(super) fn ask<T, E, F>(
    doing: &'static str,
    question: impl FnOnce(Handle) -> F + Send,
) -> Result<T, MeterError>
where
    T: Send,
    E: std::error::Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>>,
{
    let failed = |error: io::Error| MeterError::Netlink { doing, cause: cause(error) };
    thread::scope(|scope| {
        let answer = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(failed)?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
                let connection = tokio::spawn(connection);
                let answer = question(handle).await;
                connection.abort();
                answer.map_err(|error| MeterError::Netlink { doing, cause: cause(error) })
            })
        });
        answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
