"""JSON Schemas that also say what pydantic checks and leaves out of its schemas."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_BOUNDS = ("gt", "ge", "lt", "le")
_TIMES = (*_BOUNDS, "tz_constraint", "now_op", "now_utc_offset")
_DECIMALS = (*_BOUNDS, "multiple_of", "max_digits", "decimal_places", "allow_inf_nan")
_URLS = ("allowed_schemes", "host_required")
_TEXTS = ("strip_whitespace", "to_lower", "to_upper")


class ExactJsonSchema(GenerateJsonSchema):
    """A generator that adds rules which JSON Schema has no keyword for, as `x-…`.

    In messages, fields with defaults are always there.
    """

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return field.get("serialization_exclude_if") is None
        return super().field_is_required(field, total)

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        json_schema = super().decimal_schema(schema)
        for part in json_schema.get("anyOf", [json_schema]):
            if part["type"] == "string":
                part["format"] = "decimal"
            part.update(_rules(schema, _DECIMALS))
        return json_schema

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return {**super().date_schema(schema), **_rules(schema, _TIMES)}

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return {**super().time_schema(schema), **_rules(schema, _TIMES)}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        return {**super().datetime_schema(schema), **_rules(schema, _TIMES)}

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return {**super().timedelta_schema(schema), **_rules(schema, _BOUNDS)}

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return {**super().url_schema(schema), **_rules(schema, _URLS)}

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        return {**super().multi_host_url_schema(schema), **_rules(schema, _URLS)}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        return {**super().str_schema(schema), **_rules(schema, _TEXTS)}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        json_schema = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        if keys not in ({}, {"type": "string"}):
            json_schema["x-keys"] = keys
        return json_schema


def _rules(schema: Any, names: tuple[str, ...]) -> JsonSchemaValue:
    return {
        f"x-{name.replace('_', '-')}": _as_json(schema[name])
        for name in names
        if schema.get(name) is not None and schema[name] is not False
    }


def _as_json(value: Any) -> Any:
    return value if isinstance(value, bool | int | list) else str(value)
