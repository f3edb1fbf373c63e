"""YAML as settings are written in it."""

import re
from typing import Any

import yaml

BOOL = "tag:yaml.org,2002:bool"
MERGE = "tag:yaml.org,2002:merge"
"""`<<`, which may stand twice."""


class SettingsLoader(yaml.SafeLoader):
    """Plain data, in which `off` is a word, as in YAML 1.2: several settings can be called that. A switch takes it as well."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A name that stands twice in one group is an error: elsewhere the last would win, and nobody would know."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
SettingsLoader.add_implicit_resolver(BOOL, re.compile("^([Tt]rue|[Ff]alse|TRUE|FALSE)$"), list("tTfF"))


def parse(text: str) -> Any:
    """What `text` says. Raises yaml.YAMLError, for a thirteenth month and for groups without end, too."""
    try:
        return yaml.load(text, SettingsLoader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error
