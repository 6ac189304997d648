//! The OpenAPI 3.1 document, generated from the handlers and row types.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder, Schema};
use utoipa::{Modify, OpenApi};

use super::address::Address;
use super::api;
use super::problem::Problem;
use super::sse::EventRow;

#[derive(OpenApi)]
#[openapi(
    info(title = "anomaly", description = "What the daemon sees, which clients it has banned and why; bans by hand.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
    paths(api::status, api::bans, api::top, api::baseline, api::history, api::events, api::explain, api::ban,
        api::unban, document),
    components(schemas(Address, EventRow, Problem)),
    tags((name = "read", description = "The newest status, at most a second old"),
        (name = "write", description = "Bans and unbans by hand; over TCP with the bearer token")),
    security(("token" = []), ()),
    modifiers(&Token, &Problems, &Flattened))]
struct Document;

/// The bearer token.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("dashboard.token")).build();
        document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// What every operation can answer instead of what it was asked for.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut document.paths.paths {
            let asks = path.contains("{ip}");
            for (operation, writes, asks) in
                [(&mut item.get, false, asks), (&mut item.post, true, true), (&mut item.delete, true, true)]
            {
                let Some(operation) = operation else { continue };
                let body = operation.request_body.is_some();
                let parameters = operation.parameters.as_ref().is_some_and(|p| !p.is_empty());
                let mut can = |status: &str, description: &str| {
                    operation.responses.responses.insert(status.into(), problem(description).into());
                };
                if parameters || body {
                    can("400", "A parameter or the body cannot be read");
                }
                can(
                    "401",
                    "The token is wrong, or missing where it is needed: for writes, and for all from beyond this host",
                );
                if writes {
                    can("403", "No token is configured, the host name is not this host's, or another site's page asks");
                } else {
                    can("403", "The host name is not this host's");
                }
                if writes && parameters {
                    can("404", "No ban covers it");
                }
                if body {
                    can("408", "The body did not arrive in time");
                    can("409", "It is allow-listed, must never be banned, or is too wide without `force`");
                    can("413", "The body is larger than 64 KiB");
                    can("415", "The body is not declared as application/json");
                }
                if asks {
                    can(
                        "503",
                        "The daemon is busy or stopping, its database cannot be read, or the firewall did not do it",
                    );
                }
            }
        }
    }
}

fn problem(description: &str) -> utoipa::openapi::Response {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    ResponseBuilder::new().description(description).content("application/problem+json", content).build()
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "read",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
pub async fn document() -> Response {
    static DOCUMENT: LazyLock<serde_json::Value> = LazyLock::new(make);
    axum::Json(&*DOCUMENT).into_response()
}

fn make() -> serde_json::Value {
    // A document of strings and lists cannot fail to serialise.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    // What the derive cannot say: a ban has one length.
    document["components"]["schemas"]["BanRequest"]["not"] = serde_json::json!({
        "properties": {"duration_secs": {"type": "integer"}, "permanent": {"const": true}},
        "required": ["duration_secs", "permanent"],
    });
    document
}

/// A flattened `Option` leaves its keys out when it is `None`; the derived schema says that the whole row
/// would be null then.
struct Flattened;

impl Modify for Flattened {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for schema in document.components.get_or_insert_default().schemas.values_mut() {
            let RefOr::T(Schema::AllOf(all)) = schema else { continue };
            for part in &mut all.items {
                let RefOr::T(Schema::OneOf(one)) = part else { continue };
                let named = one.items.iter().find(|item| matches!(item, RefOr::Ref(_))).cloned();
                if let Some(named) = named {
                    let without = ObjectBuilder::new().schema_type(Type::Object);
                    *part = AnyOfBuilder::new().item(named).item(without).into();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_numbers_fits_its_schema() {
        let document = make();
        let parts = &document["components"]["schemas"]["DecisionRow"]["allOf"];
        assert_eq!(parts[0]["anyOf"][0]["$ref"], "#/components/schemas/Numbers");
        assert_eq!(parts[0]["anyOf"][1], serde_json::json!({"type": "object"}));
    }

    #[test]
    fn every_operation_says_how_it_fails() {
        let document = make();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let answers = operation["responses"].as_object().expect("responses");
                assert!(answers.contains_key("401") && answers.contains_key("403"), "{method} {path}");
                let problem = &answers["401"]["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(problem, "#/components/schemas/Problem", "{method} {path}");
            }
        }
    }
}
