"""Pages that mkdocs makes while it builds: the reference of commands, config keys, names and variables.

Each page comes from the code, so that it cannot fall behind: commands from typer, keys from the JSON schema of the
config, names and parameters from the registries, variables from ``daskpipe.core.variables``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PATTERNS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "array": "list",
}
"""What JSON types are called on the page."""

PLACEHOLDER = "NAME"
"""Stands for a name of the user's choice in a key: ``generate.sources.NAME.n``."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that lie in ``docs/``."""
    from mkdocs.structure.files import File

    for path, write_page in PAGES.items():
        files.append(File.generated(config, path, content=write_page()))
    return files


# --- commands ---------------------------------------------------------------------------------------


def write_commands_page() -> str:
    """Return the page of all commands, with their arguments and options."""
    import typer

    from daskpipe.cli.main import app

    root = typer.main.get_command(app)
    lines = ["# Commands", "", plain(root.help), "", plain(root.epilog), ""]
    for words, command in walk_commands(root, ()):
        lines += [f"## daskpipe {' '.join(words)}", "", plain(command.help), ""]
        if not hasattr(command, "commands"):
            lines += write_parameters(words, command)
    return "\n".join(lines)


def walk_commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command below a group, with the words that name it."""
    for name, part in sorted(getattr(command, "commands", {}).items()):
        if not part.hidden:
            yield (*words, name), part
            yield from walk_commands(part, (*words, name))


def write_parameters(words: tuple[str, ...], command: Any) -> list[str]:
    """Return the usage of a command and a table of its arguments and options."""
    context = command.context_class(command, info_name=" ".join(("daskpipe", *words)))
    usage = " ".join(context.get_usage().removeprefix("Usage:").split())
    lines = ["```text", usage, "```", ""]
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(code(" ".join(names.split())), plain(meaning)) for names, meaning in filter(None, records)]
    rows = [row for row in rows if "--help" not in row[0]]
    return [*lines, *write_table(("argument or option", "meaning"), rows), ""]


# --- config -----------------------------------------------------------------------------------------


def write_config_page() -> str:
    """Return the page of all config keys: type, default and meaning, from the JSON schema."""
    from daskpipe.config.saved import build_schema

    whole = build_schema()
    lines = [
        "# Config keys",
        "",
        "Every key that a config may have. `daskpipe config show` prints a config with all defaults filled in, and "
        "`daskpipe config schema` prints this page as a JSON schema, which editors use to complete and check.",
        "",
        "## run",
        "",
    ]
    plain_keys, sections = {}, {}
    for key, part in whole["properties"].items():
        (sections if model_of(part, whole) is not None else plain_keys)[key] = part
    lines += write_table(KEY_HEADER, [row_of(key, part, whole) for key, part in plain_keys.items()])
    for key, part in sections.items():
        model = model_of(part, whole)
        lines += ["", f"## {key}", "", plain(part.get("description") or model.get("description")), ""]
        lines += write_table(KEY_HEADER, [row_of(name, item, whole) for name, item in walk_keys(key, model, whole)])
    return "\n".join(lines)


KEY_HEADER = ("key", "type", "default", "meaning")


def walk_keys(prefix: str, model: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key below a model of the schema, by its full name, models before their keys."""
    for key, part in model.get("properties", {}).items():
        name = f"{prefix}.{key}"
        yield name, part
        if (inner := model_of(part, whole)) is not None:
            yield from walk_keys(name, inner, whole)
        elif (inner := model_of(part.get("additionalProperties"), whole)) is not None:
            yield from walk_keys(f"{name}.{PLACEHOLDER}", inner, whole)


def model_of(part: Any, whole: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the model that a part of the schema refers to, if it refers to one with keys."""
    if not isinstance(part, Mapping):
        return None
    for option in (part, *part.get("anyOf", ()), *part.get("allOf", ())):
        if "$ref" in option:
            model: dict[str, Any] = whole["$defs"][option["$ref"].rpartition("/")[2]]
            if "properties" in model:
                return model
    return None


def row_of(key: str, part: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the row of a key in the table."""
    default = part.get("default", "")
    shown = "" if default == "" or (isinstance(default, dict) and default) else code(as_yaml(default))
    return code(key), type_of(part, whole), shown, plain(part.get("description", ""))


def type_of(part: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return the type of a value in words, with its limits."""
    if "$ref" in part:
        return type_of(whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
    if options := part.get("anyOf", part.get("oneOf", part.get("allOf"))):
        return " or ".join(dict.fromkeys(type_of(option, whole) for option in options))
    if "enum" in part:
        return ", ".join(code(as_yaml(value)) for value in part["enum"])
    if "const" in part:
        return code(as_yaml(part["const"]))
    if part.get("type") == "array" and "items" in part:
        return f"list of {type_of(part['items'], whole)}"
    words = PATTERNS.get(str(part.get("type")), "any value")
    limits = [
        f"{sign} {part[key]:g}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if key in part
    ]
    return " ".join([words, *limits])


def as_yaml(value: Any) -> str:
    """Return a value as it is typed in a config."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_yaml(item)}' for key, item in value.items())}}}"
    return str(value)


# --- names ------------------------------------------------------------------------------------------


def write_names_page() -> str:
    """Return the page of what can be named in a config, with the parameters of each."""
    from daskpipe.cluster.queues import all_queue_systems
    from daskpipe.potentials import POTENTIALS
    from daskpipe.stages.describe.catalogue import DESCRIPTORS
    from daskpipe.stages.generate import GENERATORS
    from daskpipe.stages.select import SELECTORS

    lines = [
        "# Names and parameters",
        "",
        "What a config can name, and the parameters of each. Other packages add names through the entry-point groups.",
        "",
    ]
    for title, where, registry in (
        ("Generators", "generate.sources.NAME.generator", GENERATORS),
        ("Potentials and teachers", "explore.potential.name and label.potential.name", POTENTIALS),
        ("Descriptors", "describe.descriptor", DESCRIPTORS),
        ("Selection methods", "select.method", SELECTORS),
    ):
        keys = " and ".join(code(key) for key in where.split(" and "))
        lines += [f"## {title}", "", f"Named in {keys}. Entry-point group: `{registry.group}`.", ""]
        for name in sorted(registry.table):
            lines += write_entry(name, registry.get(name), registry.given)
    lines += ["## Queue systems", "", "Named in `class` of a site's file. Entry-point group: `daskpipe.queues`.", ""]
    rows = [(code(queue.name), queue.title, code(queue.submit_command)) for queue in all_queue_systems()]
    return "\n".join(lines + write_table(("name", "queue system", "submits with"), rows))


def write_entry(name: str, function: Callable[..., Any], given: tuple[str, ...]) -> list[str]:
    """Return a heading, the summary and the parameters of one registered function or class."""
    doc = inspect.getdoc(function) or ""
    lines = [f"### {name}", "", to_markdown(doc.split("\n\n")[0]), ""]
    meanings = read_parameters(doc)
    rows = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in given:
            continue
        default = "required" if parameter.default is parameter.empty else code(as_yaml(listed(parameter.default)))
        rows.append((code(parameter.name), default, to_markdown(meanings.get(parameter.name, ""))))
    return lines + (write_table(("parameter", "default", "meaning"), rows) if rows else ["No parameters."]) + [""]


def read_parameters(doc: str) -> dict[str, str]:
    """Return the meaning of each parameter of a numpydoc docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", doc, re.MULTILINE | re.DOTALL)
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
        elif line.strip():
            for name in names:
                meanings[name] = f"{meanings.get(name, '')} {line.strip()}".strip()
    return meanings


def listed(value: Any) -> Any:
    """Return tuples as lists, as YAML has them."""
    return [listed(item) for item in value] if isinstance(value, tuple | list) else value


# --- variables --------------------------------------------------------------------------------------


def write_variables_page() -> str:
    """Return the page of all variables that a dataset may have."""
    from daskpipe.core.variables import SCHEMA, STRUCTURE_KEYS, VARIABLES

    required = ", ".join(code(name) for name in STRUCTURE_KEYS)
    lines = [
        "# Variables of a dataset",
        "",
        f"Every variable that a dataset of schema `{SCHEMA}` may have. All datasets have {required}. A coded variable "
        "holds integers on disk; their names are in its attribute `flag_meanings`, and `daskpipe.open_dataset` and "
        "xarray show the codes.",
        "",
    ]
    rows = []
    for variable in VARIABLES.values():
        dtype = str(variable.dtype).lstrip("|") + (", coded" if variable.coded else "")
        unit = "" if variable.unit in (None, "1") else variable.unit
        rows.append((code(variable.name), ", ".join(variable.dims), dtype, unit, plain(variable.doc)))
    lines += write_table(("variable", "dims", "dtype", "unit", "meaning"), rows)
    return "\n".join(lines)


# --- contributing -----------------------------------------------------------------------------------


def write_contributing_page() -> str:
    """Return the page of `CONTRIBUTING.md`, which lies where people look for it."""
    text = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text()
    return text.replace("](docs/", "](")


# --- markdown ---------------------------------------------------------------------------------------

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
"""Inline code."""


def write_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a markdown table; a bar outside of code, which would end its cell, is escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return [f"| {' | '.join(map(escape_bars, row))} |" for row in lines]


def escape_bars(cell: str) -> str:
    """Return a cell of a table with the bars outside of inline code escaped."""
    return "".join(part if part.startswith("`") else part.replace("|", "&#124;") for part in CODE.split(cell))


def code(value: Any) -> str:
    """Return a value as inline code."""
    return f"`{value}`"


def plain(text: str | None) -> str:
    """Return text on one line, with what markdown or HTML would take for its own escaped."""
    return escape(" ".join((text or "").split()))


def escape(text: str) -> str:
    """Return text with what markdown or HTML would take for its own escaped."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def to_markdown(text: str) -> str:
    """Return text of a docstring on one line: references become inline code."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(code(part.strip("`")) if part.startswith("`") else escape(part) for part in parts)


PAGES: dict[str, Callable[[], str]] = {
    "contributing.md": write_contributing_page,
    "reference/commands.md": write_commands_page,
    "reference/config.md": write_config_page,
    "reference/names.md": write_names_page,
    "reference/variables.md": write_variables_page,
}
"""Generated pages, and the function that writes each."""
