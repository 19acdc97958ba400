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
    let bound = Bound {
        bytes_max: usize::MAX,
        bytes: |_: &T| 0,
    };
    take_bounded(size, items, bound, key)
}

/// What a page may hold beside its number of items.
pub(super) struct Bound<B> {
    /// The most bytes of all items but the last.
    pub(super) bytes_max: usize,
    /// The bytes of one item.
    pub(super) bytes: B,
}

/// As `take`, for items of very different sizes: the item that reaches the bound is the page's last.
///
/// # Errors
/// As `take`.
pub(super) fn take_bounded<T, K: Display>(
    size: u32,
    mut items: impl Iterator<Item = T>,
    bound: Bound<impl Fn(&T) -> usize>,
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
    let (mut page, mut bytes) = (Vec::new(), 0_usize);
    while page.len() < size
        && bytes < bound.bytes_max
        && let Some(item) = items.next()
    {
        bytes += (bound.bytes)(&item);
        page.push(item);
    }
    let token = page
        .last()
        .filter(|_| items.next().is_some())
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
    fn a_page_ends_with_the_item_that_fills_it() {
        let bound = || Bound {
            bytes_max: 10,
            bytes: |item: &usize| *item,
        };
        let page = take_bounded(0, [4, 5, 6, 7].into_iter(), bound(), |item| *item);
        assert_eq!(page.unwrap(), (vec![4, 5, 6], "6".to_owned()));
        let page = take_bounded(0, [40].into_iter(), bound(), |item| *item);
        assert_eq!(page.unwrap(), (vec![40], String::new()));
    }

    #[test]
    fn a_full_last_page_has_no_successor() {
        let (page, token) = take(3, 1..=3, |item| *item).unwrap();
        assert_eq!((page.len(), token.as_str()), (3, ""));
        assert!(take(1_001, 1..=3, |item| *item).is_err());
        assert!(after::<u32>("x").is_err());
    }
}
