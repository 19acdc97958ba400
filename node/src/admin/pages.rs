//! Lists that come in pages.

use std::fmt::Display;
use std::str::FromStr;

use tonic::Status;

use super::errors;

/// The most items in one page: some hundred kilobytes.
const PAGE_ITEMS_MAX: usize = 1_000;

/// Reads where a page begins: after the item that `token` names; at the first if it is empty.
///
/// # Errors
/// `INVALID_ARGUMENT` if the token is not one of ours.
pub(super) fn after<T: FromStr>(token: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(Some).map_err(|_| {
        errors::invalid_request("page_token", "must be a `next_page_token` of the same list")
    })
}

/// Takes one page from `items`, the ones after the token. Returns it with the next page's token,
/// which is the `key` of its last item, or empty at the end.
///
/// # Errors
/// `INVALID_ARGUMENT` if the page's size is not allowed.
pub(super) fn take<T, K: Display>(
    size: u32,
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(size) {
        Ok(0) => PAGE_ITEMS_MAX,
        Ok(size) if size <= PAGE_ITEMS_MAX => size,
        _ => {
            let problem = format!("must be at most {PAGE_ITEMS_MAX}");
            return Err(errors::invalid_request("page_size", problem));
        }
    };
    let mut page: Vec<T> = items.take(size + 1).collect();
    let more = page.len() > size;
    page.truncate(size);
    let token = page
        .last()
        .filter(|_| more)
        .map(|last| key(last).to_string());
    Ok((page, token.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_without_gap_or_overlap() {
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let after: Option<u32> = after(&token).unwrap();
            let rest = (1..=7_u32).filter(|item| Some(*item) > after);
            let (page, next) = take(3, rest, |item| *item).unwrap();
            seen.extend(page);
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, (1..=7).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_last_page_has_no_successor() {
        let (page, token) = take(3, 1..=3, |item| *item).unwrap();
        assert_eq!((page.len(), token.as_str()), (3, ""));
        assert!(take(1_001, 1..=3, |item| *item).is_err());
        assert!(after::<u32>("x").is_err());
    }
}
