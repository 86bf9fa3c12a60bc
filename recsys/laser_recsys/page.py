"""Self-contained HTML pages (no script, no network) from the package's templates."""

from __future__ import annotations

from pathlib import Path

import jinja2

from laser_recsys.files import building


def render_template(name: str, **values: object) -> str:
    """The page of a template; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laser_recsys"),
        autoescape=lambda template: template is not None and not template.endswith(".css"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name).render(**values)


def write_page(path: Path, html: str) -> None:
    """Writes a page; the file appears complete or not at all."""
    with building(path) as built:
        built.write_text(html, encoding="utf8")
        built.replace(path)
