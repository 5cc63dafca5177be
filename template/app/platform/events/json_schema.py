"""JSON Schemas that also say what pydantic checks and leaves out of its schemas."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_BOUNDS = ("gt", "ge", "lt", "le")
_TIMES = (*_BOUNDS, "tz_constraint", "now_op", "now_utc_offset")
_DECIMALS = (*_BOUNDS, "multiple_of", "max_digits", "decimal_places")
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

    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        json_schema = super().ser_schema(schema)
        function: Any = schema.get("function")
        if json_schema is not None or function is None:
            return json_schema
        # Without a return type, a function may write anything, except pydantic's own for its types.
        is_own = getattr(function, "__module__", "").startswith("pydantic.")
        return None if is_own else {}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        json_schema = super().tagged_union_schema(schema)
        if "discriminator" not in json_schema:  # a function tells the alternatives apart
            choices = schema["choices"].items()
            json_schema["x-tags"] = {str(tag): self.generate_inner(one) for tag, one in choices}
        return json_schema

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        json_schema = super().float_schema(schema)
        if self.mode != "serialization" or not self._rule(schema, "allow_inf_nan", True):
            return json_schema
        # They are written as null, unless the model's config says otherwise.
        as_null = self._config.ser_json_inf_nan == "null"
        others: JsonSchemaValue = {"enum": ["NaN", "Infinity", "-Infinity"]}
        return {"anyOf": [json_schema, {"type": "null"} if as_null else others]}

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        json_schema = super().decimal_schema(schema)
        for part in json_schema.get("anyOf", [json_schema]):
            if part["type"] == "string":
                part["format"] = "decimal"
                if self._rule(schema, "allow_inf_nan", False):
                    part["x-allow-inf-nan"] = True
            part.update(_rules(schema, _DECIMALS))
        return json_schema

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        json_schema = super().bytes_schema(schema)
        if self.mode == "validation":
            is_text = self._config.val_json_bytes == "utf8"
            json_schema["format"] = "binary" if is_text else "base64url"
        for size in ("minLength", "maxLength"):  # of the bytes, not of the text
            if size in json_schema:
                json_schema[f"x-{size}"] = json_schema.pop(size)
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
        rules = {name: self._rule(schema, name, False, f"str_{name}") for name in _TEXTS}
        return {**super().str_schema(schema), **_rules(rules, _TEXTS)}

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        json_schema = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        if keys not in ({}, {"type": "string"}):
            json_schema["x-keys"] = keys
        return json_schema

    def _rule(self, schema: Any, name: str, default: bool, in_config: str = "") -> Any:
        """Return a rule of the schema, else of the model's config."""
        return schema.get(name, self._config.config_dict.get(in_config or name, default))


def _rules(schema: Any, names: tuple[str, ...]) -> JsonSchemaValue:
    return {
        f"x-{name.replace('_', '-')}": _as_json(schema[name])
        for name in names
        if schema.get(name) is not None and schema[name] is not False
    }


def _as_json(value: Any) -> Any:
    return value if isinstance(value, bool | int | list) else str(value)
