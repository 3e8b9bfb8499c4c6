"""What the pages are made of: the shell with its style, tables, inlined plots. No script."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from mammo_pd.report.figures import Picture

if TYPE_CHECKING:
    from mammo_pd.report.content import ReportContext

_STYLE = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  --ground: #f4f6f8; --paper: #ffffff; --ink: #1c2430; --muted: #5b6675; --grid: #dfe4ea;
  --model: #0b5fa5; --chance: #8a94a3; --mark: #b3400f; --other: #7a4fa3;
  --warn: #fff4d6; --warn-edge: #c98a00; --phantom: #fde5e0; --phantom-edge: #b3261e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #10151b; --paper: #181f27; --ink: #e8edf2; --muted: #a5b0bd; --grid: #303a46;
    --model: #6cb6f5; --chance: #7c8896; --mark: #ff9a6b; --other: #c6a2f0;
    --warn: #33290f; --warn-edge: #e0a83a; --phantom: #3d1d1a; --phantom-edge: #ff8a80;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 var(--sans); }
main, header, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .4rem; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--model); }
.kicker, .facts, .how, caption, footer { color: var(--muted); }
.kicker { letter-spacing: .06em; text-transform: uppercase; font-size: .8rem; margin: 0; }
.facts { font-size: .9rem; }
nav { margin: 1rem 0; font-size: .95rem; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: 10px;
  padding: 1.3rem 1.5rem; margin: 1.1rem 0; }
.banner { border: 1px solid var(--warn-edge); border-left-width: 6px; background: var(--warn);
  border-radius: 6px; padding: .6rem 1rem; margin: .7rem 0; max-width: none; }
.phantom { border-color: var(--phantom-edge); background: var(--phantom); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem;
  margin: 1rem 0; }
.tile { border: 1px solid var(--grid); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 2.1rem; line-height: 1.15;
  font-variant-numeric: tabular-nums; }
.tile .level { font-weight: 600; text-transform: capitalize; }
.tile small { color: var(--muted); display: block; font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .7rem 0; }
caption { text-align: left; white-space: nowrap; padding-bottom: .35rem; }
th, td { padding: .34rem 1.5rem .34rem 0; border-bottom: 1px solid var(--grid); text-align: right;
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--muted); border-bottom-color: var(--chance); }
th:first-child, td:first-child, .text { text-align: left; }
th[scope=row] { font-weight: 400; }
.wrap { white-space: normal; min-width: 13rem; max-width: 19rem; }
.prose td, .prose th { text-align: left; white-space: normal; }
.gallery { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.gallery figure { margin: 0; }
.gallery img { width: 100%; height: auto; border: 1px solid var(--grid); background: #000; }
.gallery figcaption { font-size: .8rem; }
.dense .wrap { min-width: 8rem; }
td small { display: block; color: var(--muted); }
.dense th, .dense td { padding-right: .8rem; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; max-width: 54rem; display: block; }
figcaption { font-size: .92rem; max-width: 46rem; }
.how::before { content: "How to read this: "; font-weight: 600; color: var(--ink); }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--model); }
code { font-size: .88em; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .92rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
footer { font-size: .85rem; padding-bottom: 2rem; }
@media print {
  body { background: none; font-size: 10.5pt; }
  section { border: 0; padding: 0; break-inside: auto; }
  figure, table, .tile, .banner { break-inside: avoid; }
  nav { display: none; }
  table { font-size: 8pt; }
  th, td, .dense th, .dense td { padding-right: .5rem; }
  .wrap, .dense .wrap { min-width: 5.5rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { list-style: none; }
}
"""

_RESEARCH = (
    "<strong>For research only.</strong> This is no medical device: it must not guide the care of "
    "any person. Figures hold for the images described below and need not hold elsewhere."
)
_PHANTOM = (
    "<strong>These images are phantoms.</strong> They were drawn by a program to show that the "
    "software works from end to end. The figures say nothing about real mammograms or real cancers."
)


def document(context: "ReportContext", sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page around its sections (id, heading, content)."""
    links = " ".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(name)}</h2>{content}</section>\n'
        for key, name, content in sections
    )
    title = escape(context.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched, not even by mistake.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n"
        f'<body>\n{_head(context)}<main>\n<nav aria-label="Sections">{links}</nav>\n{body}</main>\n'
        "<footer><p>Written by mammo-pd. Every table and plot lies beside this page too, as CSV, "
        "PNG and SVG.</p></footer>\n"
        "</body>\n</html>\n"
    )


def _head(context: "ReportContext") -> str:
    facts = [context.model, context.run_id and f"run {context.run_id}", context.created]
    banners = f'<p class="banner" role="note">{_RESEARCH}</p>'
    if context.phantom:
        banners = f'<p class="banner phantom" role="note">{_PHANTOM}</p>' + banners
    return (
        '<header><p class="kicker">mammo-pd · evaluation</p>'
        f"<h1>{escape(context.title)}</h1>"
        f'<p class="facts">{" · ".join(escape(fact) for fact in facts if fact)}</p>'
        f"{banners}</header>\n"
    )


def inlined(picture: Picture, how: str) -> str:
    """A plot with a caption on how to read it, and in words for those who cannot see it."""
    return (
        f'<figure id="figure-{picture.name}" role="figure" aria-label="{escape(picture.alt)}">'
        f'{picture.inline()}<figcaption class="how">{how}</figcaption></figure>'
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    dense: bool = False,
    prose: bool = False,
) -> str:
    """A table whose first column names the rows; a cell's second line is set small."""
    style = "dense" if dense else "prose" if prose else "plain"
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row" class="wrap">{escape(row[0])}</th>'
        + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{style}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    first, _, second = text.partition("\n")
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")
