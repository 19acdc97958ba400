//! Showing the settings as YAML would say them, every default written out.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::LoadBalancingPolicy;
use super::super::render::seconds;
use super::{
    HashKey, Retries, RouteRule, Timeouts, Traffic, UpstreamProtocol, UpstreamSettings,
    UpstreamTrust,
};

impl Traffic {
    /// The section, with `policy` in it if SkyServe has no such policy.
    pub(in super::super) fn render(&self, policy: LoadBalancingPolicy) -> Value {
        let Self {
            hash_on,
            upstream,
            timeouts,
            retries,
            ejection,
            slow_start,
            queue,
            request_body_bytes_max,
            request_head_bytes_max,
            routes,
        } = self;
        let mut section = json!({
            "upstream": render_upstream(upstream),
            "timeouts": render_timeouts(timeouts),
            "retries": render_retries(retries),
            "ejection": {
                "consecutive_errors": ejection.consecutive_errors,
                "base_seconds": seconds(ejection.base),
                "max_seconds": seconds(ejection.max),
                "panic_percent": ejection.panic_percent,
            },
            "slow_start_seconds": seconds(*slow_start),
            "queue": { "requests": queue.requests, "wait_seconds": seconds(queue.wait) },
        });
        if !policy.is_skyserves() {
            section["policy"] = policy.name().into();
        }
        if let Some(key) = hash_on {
            section["hash_on"] = match key {
                HashKey::Header(name) => json!({ "header": name }),
                HashKey::Cookie(name) => json!({ "cookie": name }),
                HashKey::Query(name) => json!({ "query": name }),
                HashKey::JsonField(pointer) => json!({ "json_field": pointer }),
                HashKey::SourceAddress => json!({ "source_address": true }),
            };
        }
        if let Some(bytes) = request_body_bytes_max {
            section["request_body_bytes_max"] = (*bytes).into();
        }
        if let Some(bytes) = request_head_bytes_max {
            section["request_head_bytes_max"] = (*bytes).into();
        }
        if !routes.is_empty() {
            section["routes"] = routes.iter().map(render_rule).collect();
        }
        section
    }
}

fn render_upstream(settings: &UpstreamSettings) -> Value {
    let mut section = json!({
        "protocol": match settings.protocol {
            UpstreamProtocol::Auto => "auto",
            UpstreamProtocol::Http1 => "http1",
            UpstreamProtocol::Http2 => "http2",
        },
        "connect_timeout_seconds": seconds(settings.connect_timeout),
    });
    if let Some(tls) = &settings.tls {
        let mut shown = match &tls.trust {
            UpstreamTrust::Authorities(pem) => json!({ "authorities": pem }),
            UpstreamTrust::Anything => json!({ "verify": false }),
        };
        if let Some(name) = &tls.server_name {
            shown["server_name"] = name.clone().into();
        }
        section["tls"] = shown;
    }
    section
}

fn render_timeouts(timeouts: &Timeouts) -> Value {
    let Timeouts {
        first_byte,
        idle,
        total,
        tunnel_idle,
    } = timeouts;
    given([
        ("first_byte_seconds", *first_byte),
        ("idle_seconds", *idle),
        ("total_seconds", *total),
        ("tunnel_idle_seconds", *tunnel_idle),
    ])
    .into()
}

fn render_retries(retries: &Retries) -> Value {
    let mut section = given([
        ("per_try_timeout_seconds", retries.per_try_timeout),
        ("hedge_after_seconds", retries.hedge_after),
    ]);
    section.insert("max".to_owned(), retries.max.into());
    section.insert("budget_percent".to_owned(), retries.budget_percent.into());
    section.insert("statuses".to_owned(), json!(retries.statuses));
    section.insert("after_sent".to_owned(), retries.after_sent.into());
    section.into()
}

fn given<const N: usize>(durations: [(&str, Option<Duration>); N]) -> Map<String, Value> {
    durations
        .into_iter()
        .filter_map(|(name, duration)| Some((name.to_owned(), seconds(duration?))))
        .collect()
}

fn render_rule(rule: &RouteRule) -> Value {
    let RouteRule {
        hosts,
        path_prefix,
        methods,
        headers,
        rewrite_prefix,
        weights,
        timeouts,
        retries,
        connect_timeout,
        request_body_bytes_max,
    } = rule;
    let conditions = [
        ("hosts", json!(hosts), hosts.is_empty()),
        ("path_prefix", json!(path_prefix), path_prefix.is_none()),
        ("methods", json!(methods), methods.is_empty()),
        ("headers", json!(headers), headers.is_empty()),
        (
            "rewrite_prefix",
            json!(rewrite_prefix),
            rewrite_prefix.is_none(),
        ),
        ("weights", json!(weights), weights.is_empty()),
    ];
    let mut shown: Map<String, Value> = conditions
        .into_iter()
        .filter(|(_, _, absent)| !absent)
        .map(|(name, value, _)| (name.to_owned(), value))
        .collect();
    if let Some(timeouts) = timeouts {
        shown.insert("timeouts".to_owned(), render_timeouts(timeouts));
    }
    if let Some(retries) = retries {
        shown.insert("retries".to_owned(), render_retries(retries));
    }
    shown.extend(given([("connect_timeout_seconds", *connect_timeout)]));
    if let Some(bytes) = request_body_bytes_max {
        shown.insert("request_body_bytes_max".to_owned(), (*bytes).into());
    }
    shown.into()
}
