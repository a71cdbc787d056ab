//! The forms that docker-py accepts for a value, read one by one. A value never stands in a message: it may be a secret.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{DeviceMapping, DeviceRequest, HealthConfig, HostConfigLogConfig, PortBinding, ResourcesUlimits};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::docker::error::DockerError;

/// A bind or a named volume: `source:target[:mode]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::docker) struct Volume {
    pub(in crate::docker) source: String,
    pub(in crate::docker) target: String,
    /// `rw`, `ro`, or more exotic (`z`, `rshared`, comma separated).
    pub(in crate::docker) mode: String,
}

/// The argument that is being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a>(pub(super) &'a str);

type Result<T> = std::result::Result<T, DockerError>;

impl At<'_> {
    pub(super) fn error(self, message: impl Into<String>) -> DockerError {
        DockerError::spec(format!("run_args.{}", self.0), message)
    }

    fn expected<T>(self, what: &str, found: &Value) -> Result<T> {
        let found = match found {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a dict",
        };
        Err(self.error(format!("must be {what}, not {found}")))
    }

    pub(super) fn text(self, value: &Value) -> Result<String> {
        value.as_str().map(str::to_owned).map_or_else(|| self.expected("a text", value), Ok)
    }

    pub(super) fn text_or_number(self, value: &Value) -> Result<String> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => self.expected("a text or a number", value),
        }
    }

    pub(super) fn boolean(self, value: &Value) -> Result<bool> {
        value.as_bool().map_or_else(|| self.expected("true or false", value), Ok)
    }

    pub(super) fn number<N: TryFrom<i64>>(self, value: &Value) -> Result<N> {
        match value.as_i64().and_then(|number| N::try_from(number).ok()) {
            Some(number) => Ok(number),
            None if value.is_number() => Err(self.error("is out of range or no whole number")),
            None => self.expected("a whole number", value),
        }
    }

    /// Bytes: a number, or a text such as `512m`, `4g`, `4GB`, with docker-py's powers of 1024.
    pub(super) fn bytes(self, value: &Value) -> Result<i64> {
        const FORM: &str = "a number of bytes or a text such as `512m` or `4g`";
        match value {
            Value::Number(_) => self.number(value),
            Value::String(text) => parse_bytes(text).ok_or_else(|| self.error(format!("must be {FORM}"))),
            _ => self.expected(FORM, value),
        }
    }

    fn list(self, value: &Value) -> Result<&Vec<Value>> {
        value.as_array().map_or_else(|| self.expected("a list", value), Ok)
    }

    fn dict(self, value: &Value) -> Result<&Map<String, Value>> {
        value.as_object().map_or_else(|| self.expected("a dict", value), Ok)
    }

    /// Numbers count as texts, as group ids do in docker-py.
    pub(super) fn texts(self, value: &Value) -> Result<Vec<String>> {
        self.list(value)?.iter().map(|item| self.text_or_number(item)).collect()
    }

    pub(super) fn texts_or_comma_separated(self, value: &Value) -> Result<Vec<String>> {
        match value {
            Value::String(text) => Ok(text.split(',').map(|part| part.trim().to_owned()).collect()),
            _ => self.texts(value),
        }
    }

    pub(super) fn text_map(self, value: &Value) -> Result<HashMap<String, String>> {
        self.dict(value)?.iter().map(|(key, item)| Ok((key.clone(), self.scalar(item)?))).collect()
    }

    fn scalar(self, value: &Value) -> Result<String> {
        match value {
            Value::Bool(flag) => Ok(flag.to_string()),
            _ => self.text_or_number(value),
        }
    }

    /// A dict, or a list of `NAME=value` and `NAME`.
    pub(super) fn environment(self, value: &Value) -> Result<BTreeMap<String, Option<String>>> {
        let variables: BTreeMap<_, _> = match value {
            Value::Array(items) => items
                .iter()
                .map(|item| {
                    let text = self.text(item)?;
                    Ok(match text.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    })
                })
                .collect::<Result<_>>()?,
            Value::Object(items) => items
                .iter()
                .map(|(name, item)| {
                    // Python's str() of a boolean is what docker-py would send.
                    Ok((
                        name.clone(),
                        match item {
                            Value::Null => None,
                            Value::Bool(true) => Some("True".to_owned()),
                            Value::Bool(false) => Some("False".to_owned()),
                            _ => Some(self.text_or_number(item)?),
                        },
                    ))
                })
                .collect::<Result<_>>()?,
            _ => return self.expected("a dict or a list of `NAME=value`", value),
        };
        for (name, value) in &variables {
            if name.is_empty() || name.contains(['=', '\0']) || value.as_ref().is_some_and(|value| value.contains('\0'))
            {
                return Err(self.error("has an entry without a proper name, or a NUL character in a value"));
            }
        }
        Ok(variables)
    }

    /// A dict, or a list of names with empty values.
    pub(super) fn labels(self, value: &Value) -> Result<BTreeMap<String, String>> {
        match value {
            Value::Array(_) => Ok(self.texts(value)?.into_iter().map(|name| (name, String::new())).collect()),
            _ => Ok(self.text_map(value)?.into_iter().collect()),
        }
    }

    /// A dict, or a list of `host:address`.
    pub(super) fn extra_hosts(self, value: &Value) -> Result<BTreeMap<String, String>> {
        let Value::Array(_) = value else { return Ok(self.text_map(value)?.into_iter().collect()) };
        self.texts(value)?
            .iter()
            .map(|entry| {
                let (host, address) = entry
                    .split_once([':', '='])
                    .ok_or_else(|| self.error("has an entry that is not `host:address`"))?;
                Ok((host.to_owned(), address.to_owned()))
            })
            .collect()
    }

    /// A list of `source:target[:mode]`, or a dict of source to `{bind, mode|ro, propagation}` or to target.
    pub(super) fn volumes(self, value: &Value) -> Result<Vec<Volume>> {
        if let Value::Array(_) = value {
            return self.texts(value)?.iter().map(|bind| self.bind(bind)).collect();
        }
        self.dict(value)?
            .iter()
            .map(|(source, item)| match item {
                Value::Object(fields) => self.volume(source, fields),
                _ => Ok(Volume { source: source.clone(), target: self.text(item)?, mode: "rw".to_owned() }),
            })
            .collect()
    }

    fn bind(self, bind: &str) -> Result<Volume> {
        let mut parts = bind.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(source), Some(target), mode) if !source.is_empty() && target.starts_with('/') => Ok(Volume {
                source: source.to_owned(),
                target: target.to_owned(),
                mode: mode.unwrap_or("rw").to_owned(),
            }),
            _ => Err(self.error(format!("`{bind}` is not `source:target[:mode]` with an absolute target"))),
        }
    }

    fn volume(self, source: &str, fields: &Map<String, Value>) -> Result<Volume> {
        if let Some(other) = fields.keys().find(|key| !["bind", "mode", "ro", "propagation"].contains(&key.as_str())) {
            return Err(
                self.error(format!("`{source}` has the unknown key `{other}`; known are bind, mode, ro, propagation"))
            );
        }
        let Some(target) = fields.get("bind").and_then(Value::as_str) else {
            return Err(self.error(format!("`{source}` needs the key `bind`, a path in the container")));
        };
        let mut mode = match (fields.get("ro"), fields.get("mode")) {
            (Some(_), Some(_)) => return Err(self.error(format!("`{source}` has both `ro` and `mode`"))),
            (Some(read_only), None) => if self.boolean(read_only)? { "ro" } else { "rw" }.to_owned(),
            (None, Some(mode)) => self.text(mode)?,
            (None, None) => "rw".to_owned(),
        };
        if let Some(propagation) = fields.get("propagation") {
            mode = format!("{mode},{}", self.text(propagation)?);
        }
        Ok(Volume { source: source.to_owned(), target: target.to_owned(), mode })
    }

    /// Container port to: nothing (any port), a port, `(address, port)`, or a list of those.
    pub(super) fn ports(self, value: &Value) -> Result<BTreeMap<String, Option<Vec<PortBinding>>>> {
        self.dict(value)?
            .iter()
            .map(|(port, target)| {
                let number = port.split('/').next().unwrap_or_default();
                if number.parse::<u16>().is_err() {
                    return Err(self.error(format!("`{port}` is not a container port such as `8080/tcp`")));
                }
                let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
                Ok((port, Some(self.port_bindings(target)?)))
            })
            .collect()
    }

    fn port_bindings(self, target: &Value) -> Result<Vec<PortBinding>> {
        match target {
            // A Python tuple arrives as a list: two items of which the first is a text without a colon-free number.
            Value::Array(items) if is_address_and_port(items) => Ok(vec![PortBinding {
                host_ip: Some(self.text(&items[0])?),
                host_port: items.get(1).map(|port| self.host_port(port)).transpose()?.flatten(),
            }]),
            Value::Array(items) => {
                items.iter().map(|item| self.port_bindings(item)).collect::<Result<Vec<_>>>().map(|all| all.concat())
            }
            _ => Ok(vec![PortBinding { host_ip: None, host_port: self.host_port(target)? }]),
        }
    }

    fn host_port(self, value: &Value) -> Result<Option<String>> {
        match value {
            Value::Null => Ok(None),
            _ => self.text_or_number(value).map(Some),
        }
    }

    /// A list of `host[:container[:permissions]]`, or of Engine API dicts.
    pub(super) fn devices(self, value: &Value) -> Result<Vec<DeviceMapping>> {
        self.list(value)?
            .iter()
            .map(|item| {
                let Value::String(text) = item else { return self.model(item) };
                let mut parts = text.split(':');
                let host = parts.next().unwrap_or_default();
                Ok(DeviceMapping {
                    path_on_host: Some(host.to_owned()),
                    path_in_container: Some(parts.next().unwrap_or(host).to_owned()),
                    cgroup_permissions: Some(parts.next().unwrap_or("rwm").to_owned()),
                })
            })
            .collect()
    }

    /// `{name, soft, hard}` with either spelling.
    pub(super) fn ulimits(self, value: &Value) -> Result<Vec<ResourcesUlimits>> {
        self.list(value)?
            .iter()
            .map(|item| {
                let fields = self.known(item, &["name", "soft", "hard"])?;
                Ok(ResourcesUlimits {
                    name: fields.get("name").map(|name| self.text(name)).transpose()?,
                    soft: fields.get("soft").map(|soft| self.number(soft)).transpose()?,
                    hard: fields.get("hard").map(|hard| self.number(hard)).transpose()?,
                })
            })
            .collect()
    }

    /// `{driver, count, device_ids, capabilities, options}` with either spelling.
    pub(super) fn device_requests(self, value: &Value) -> Result<Vec<DeviceRequest>> {
        self.list(value)?
            .iter()
            .map(|item| {
                let fields = self.known(item, &["driver", "count", "deviceids", "capabilities", "options"])?;
                Ok(DeviceRequest {
                    driver: fields.get("driver").map(|driver| self.text(driver)).transpose()?,
                    count: fields.get("count").map(|count| self.number(count)).transpose()?,
                    device_ids: fields.get("deviceids").map(|ids| self.texts(ids)).transpose()?,
                    capabilities: fields.get("capabilities").map(|all| self.model(all)).transpose()?,
                    options: fields.get("options").map(|options| self.text_map(options)).transpose()?,
                })
            })
            .collect()
    }

    /// `{test, interval, timeout, retries, start_period}` with either spelling; times in nanoseconds.
    pub(super) fn healthcheck(self, value: &Value) -> Result<HealthConfig> {
        let known = ["test", "interval", "timeout", "retries", "startperiod", "startinterval"];
        let fields = self.known(value, &known)?;
        let number = |name: &str| fields.get(name).map(|value| self.number(value)).transpose();
        Ok(HealthConfig {
            test: match fields.get("test") {
                Some(Value::String(command)) => Some(vec!["CMD-SHELL".to_owned(), command.clone()]),
                Some(other) => Some(self.texts(other)?),
                None => None,
            },
            interval: number("interval")?,
            timeout: number("timeout")?,
            retries: number("retries")?,
            start_period: number("startperiod")?,
            start_interval: number("startinterval")?,
        })
    }

    /// `{type, config}` with either spelling.
    pub(super) fn log_config(self, value: &Value) -> Result<HostConfigLogConfig> {
        let fields = self.known(value, &["type", "config"])?;
        Ok(HostConfigLogConfig {
            typ: fields.get("type").map(|driver| self.text(driver)).transpose()?,
            config: fields.get("config").map(|config| self.text_map(config)).transpose()?,
        })
    }

    pub(super) fn tmpfs(self, value: &Value) -> Result<HashMap<String, String>> {
        match value {
            Value::Array(_) => Ok(self
                .texts(value)?
                .iter()
                .map(|entry| entry.split_once(':').unwrap_or((entry, "")))
                .map(|(path, options)| (path.to_owned(), options.to_owned()))
                .collect()),
            _ => self.text_map(value),
        }
    }

    /// A dict, or a list of pairs, of container and alias.
    pub(super) fn links(self, value: &Value) -> Result<Vec<String>> {
        let join = |name: &str, alias: Option<&str>| match alias {
            Some(alias) if !alias.is_empty() => format!("{name}:{alias}"),
            _ => name.to_owned(),
        };
        match value {
            Value::Object(items) => Ok(items.iter().map(|(name, alias)| join(name, alias.as_str())).collect()),
            _ => self
                .list(value)?
                .iter()
                .map(|item| match item.as_array().map(Vec::as_slice) {
                    Some([Value::String(name), alias]) => Ok(join(name, alias.as_str())),
                    _ => self.expected("a dict or a list of pairs of container and alias", item),
                })
                .collect(),
        }
    }

    /// The Engine API's own dict.
    pub(super) fn model<T: DeserializeOwned>(self, value: &Value) -> Result<T> {
        // serde's message may repeat the value; the names of the Engine API's fields are what helps.
        serde_json::from_value(value.clone())
            .map_err(|_| self.error("does not have the form that the Engine API documents"))
    }

    /// A list of the Engine API's own dicts.
    pub(super) fn model_list<T: DeserializeOwned>(self, value: &Value) -> Result<Vec<T>> {
        self.list(value)?.iter().map(|item| self.model(item)).collect()
    }

    /// A dict's fields by folded name (`StartPeriod` and `start_period` are the same), without those that are null.
    fn known<'v>(self, value: &'v Value, known: &[&str]) -> Result<HashMap<String, &'v Value>> {
        let mut fields = HashMap::new();
        for (name, item) in self.dict(value)? {
            let folded = name.replace('_', "").to_ascii_lowercase();
            if !known.contains(&folded.as_str()) {
                return Err(self.error(format!("has the unknown key `{name}`")));
            }
            if !item.is_null() {
                fields.insert(folded, item);
            }
        }
        Ok(fields)
    }
}

/// Whether a list is docker-py's `(address, port)` or `(address,)` rather than a list of ports.
fn is_address_and_port(items: &[Value]) -> bool {
    let is_address = |value: &Value| value.as_str().is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    matches!(items, [address] | [address, _] if is_address(address))
}

/// docker-py's units: powers of 1024, a trailing `b` or `B` after the unit is decoration.
fn parse_bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let body = match lower.strip_suffix('b') {
        Some(rest) if rest.ends_with(|last: char| last.is_ascii_alphabetic()) => rest,
        _ => &lower,
    };
    let (digits, unit) = match body.chars().last()? {
        'b' => (&body[..body.len() - 1], 1_i64),
        'k' => (&body[..body.len() - 1], 1 << 10),
        'm' => (&body[..body.len() - 1], 1 << 20),
        'g' => (&body[..body.len() - 1], 1 << 30),
        't' => (&body[..body.len() - 1], 1 << 40),
        _ => (body, 1),
    };
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.checked_mul(unit);
    }
    let value = digits.parse::<f64>().ok().filter(|value| value.is_finite())?;
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "bounded on the next line")]
    let (bytes, scaled) = ((value * unit as f64) as i64, value * unit as f64);
    (scaled.abs() < 9e18).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_are_read_as_docker_py_reads_them() {
        for (text, bytes) in [
            ("512", 512),
            ("1b", 1),
            ("2k", 2048),
            ("2K", 2048),
            ("4g", 4 << 30),
            ("4GB", 4 << 30),
            ("1.5m", 1_572_864),
            ("-1", -1),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "g", "4x", "four", "inf", "nan", "99999999999999t"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
