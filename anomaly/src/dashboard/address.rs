//! An address or prefix as the API takes it, for its description.

use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An address or prefix as text: what `report::parse_ip` reads.
pub struct Address;

/// IPv6 with at most one `::`, and a prefix length of 0 to 128.
const IPV6_PREFIX: &str = concat!(
    "^((H:){7}H|(H:){1,7}:|(H:){1,6}:H|(H:){1,5}(:H){1,2}|(H:){1,4}(:H){1,3}|(H:){1,3}(:H){1,4}|(H:){1,2}(:H){1,5}",
    "|H:((:H){1,6})|:((:H){1,7}|:))/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$"
);
const IPV4_PREFIX: &str = "^(B\\.){3}B/(3[0-2]|[12]?[0-9])$";

impl PartialSchema for Address {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let format = |name: &str| text().format(Some(SchemaFormat::Custom(name.into())));
        AnyOfBuilder::new()
            .description(Some("Address, or prefix with its length"))
            .item(format("ipv4"))
            .item(format("ipv6"))
            .item(text().pattern(Some(IPV4_PREFIX.replace('B', "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"))))
            .item(text().pattern(Some(IPV6_PREFIX.replace('H', "[0-9A-Fa-f]{1,4}"))))
            .into()
    }
}

impl ToSchema for Address {
    fn name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }
}

/// The address or prefix in a path.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a path segment that the handlers parse themselves")]
pub struct IpParam {
    /// Address, or prefix with its slash as `%2F`.
    #[param(value_type = Address, example = "203.0.113.10")]
    ip: String,
}
