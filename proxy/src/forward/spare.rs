//! A request kept to be sent again after it was sent.

use http::{Method, Request};
use tokio::time::Instant;

use super::Terms;
use crate::body::{Upload, UploadBody};
use crate::metrics::count;
use crate::view::ServiceView;

/// What it takes to send a request again after it was sent.
pub(super) struct Spare {
    head: Request<()>,
    upload: Upload,
}

impl Spare {
    pub(super) fn of(request: &Request<UploadBody>) -> Box<Self> {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        *head.extensions_mut() = request.extensions().clone();
        let upload = request.body().upload();
        Box::new(Self { head, upload })
    }

    pub(super) fn method(&self) -> &Method {
        self.head.method()
    }

    /// Whether there is no body.
    pub(super) fn has_no_body(&self) -> bool {
        self.upload.is_empty()
    }

    /// Whether all of the body that was sent is still held.
    pub(super) fn is_kept(&self) -> bool {
        self.upload.is_kept()
    }

    /// The request once more.
    pub(super) fn again(&self) -> Option<Box<Request<UploadBody>>> {
        let body = self.upload.again()?;
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method().clone();
        *request.uri_mut() = self.head.uri().clone();
        *request.version_mut() = self.head.version();
        *request.headers_mut() = self.head.headers().clone();
        *request.extensions_mut() = self.head.extensions().clone();
        Some(Box::new(request))
    }
}

/// Counts a request that came at `now` for the budget of retries.
pub(super) fn deposit(service: &ServiceView, terms: &Terms<'_>, now: Instant) {
    let mut budget = service.budget.borrow_mut();
    budget.deposit(now, terms.retries.budget_percent);
}

/// Whether a request that was sent may be sent again within the budget. If so, it is counted.
pub(super) fn withdraw(service: &ServiceView, terms: &Terms<'_>) -> bool {
    let mut budget = service.budget.borrow_mut();
    let fits = budget.withdraw(Instant::now(), terms.retries.budget_percent);
    count(match fits {
        true => &service.counters.retries,
        false => &service.counters.retries_over_budget,
    });
    fits
}
