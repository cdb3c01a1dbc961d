"""The page around the sections, and its style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from masters_ray.records import StepMetrics
from masters_ray.report import sections
from masters_ray.report.examples import examples as examples_section
from masters_ray.report.inputs import Example, Summary
from masters_ray.report.learning import learning
from masters_ray.report.markup import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --muted: #5c6571; --grid: #dde1e6; --page: #f5f6f8; --card: #fff;
  --before: #c25e01; --after: #0072b2; --teacher: #00805c; --band: #8a63b8; --up: #0072b2; --down: #b14a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --muted: #a2abb7; --grid: #39414b; --page: #14181d;
  --card: #1d2329; --before: #f0a04b; --after: #5db7ee; --teacher: #3fc79a; --band: #b79ae0; --up: #5db7ee;
  --down: #f0a04b; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1100px; margin: 0 auto; padding: 0 18px; }
header { padding-top: 28px; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0; color: var(--muted); }
h2 { font-size: 1.3rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.3rem 0 .4rem; }
p { max-width: 78ch; margin: 0 0 .8rem; }
nav { margin: .3rem 0 1rem; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
a { color: var(--after); }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; padding: 20px 22px;
  margin: 0 0 18px; }
.headline { font-size: 1.55rem; line-height: 1.3; font-weight: 650; max-width: 46ch; text-wrap: balance; }
.muted { color: var(--muted); font-weight: normal; }
.warning { border-left: 4px solid var(--down); padding: .3rem .8rem; background: var(--page); }
.small { font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 1rem 0;
  max-width: 760px; }
.tile { border: 1px solid var(--grid); border-left: 5px solid; border-radius: 8px; padding: 8px 14px; }
.tile.before { border-left-color: var(--before); } .tile.after { border-left-color: var(--after); }
.tile.teacher { border-left-color: var(--teacher); }
.tile strong { display: block; font-size: 1.7rem; line-height: 1.25; }
.tile .muted { font-size: .85rem; display: block; }
.chart { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.chart text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif
  !important; }
.wide { max-width: 760px; margin-bottom: 1rem; overflow-x: auto; }
.wide .chart { min-width: 430px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 10px 26px; }
figure { margin: 0; min-width: 0; }
figure h3 { margin: .6rem 0 .1rem; }
figcaption { font-size: .87rem; color: var(--muted); line-height: 1.45; }
.scroll { overflow-x: auto; margin: 0 0 .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; vertical-align: bottom; color: var(--muted); font-weight: 600; line-height: 1.25; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--grid); }
td { vertical-align: top; }
tfoot td { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.together { white-space: nowrap; }
code { font-size: .88em; overflow-wrap: anywhere; }
td code { overflow-wrap: break-word; }
.bar { display: block; min-width: 60px; height: 5px; margin-top: 3px; border-radius: 3px; background: var(--grid); }
.bar > span { display: block; height: 100%; border-radius: 3px; background: var(--after); }
.bar > .teacher { background: var(--teacher); }
.phases table { max-width: 720px; }
.slim table { max-width: 430px; }
.phases td:last-child { width: 55%; vertical-align: middle; }
.phases .bar { height: 12px; margin: 0; background: none; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 190px), 1fr));
  gap: 8px 20px; margin: .8rem 0; }
dt { font-size: .82rem; color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
dl.short { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin: .4rem 0; }
.card { border: 1px solid var(--grid); border-radius: 10px; padding: 14px 16px 4px; margin: 0 0 14px; }
.question { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 18px; margin-bottom: .6rem; }
.question > div:last-child { flex: 1 1 260px; min-width: 0; }
h4 { margin: 0; font-size: 1.08rem; }
.pictures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px; max-width: 100%; }
img { max-width: 100%; height: auto; border-radius: 6px; border: 1px solid var(--grid); }
.pixels { image-rendering: pixelated; }
.written { white-space: pre-wrap; overflow-wrap: anywhere; }
.card td:nth-child(2), .card td:nth-child(4) { min-width: 150px; }
.card td:nth-child(4) { color: var(--muted); font-size: .85rem; }
.chip { border-radius: 999px; padding: 1px 9px; font-size: .82rem; border: 1px solid; white-space: nowrap; }
.chip.teacher { color: var(--teacher); } .chip.student { color: var(--after); }
.up { color: var(--up); font-weight: 600; } .down { color: var(--down); font-weight: 600; }
summary { cursor: pointer; }
summary em { color: var(--after); font-style: normal; }
pre { overflow-x: auto; background: var(--page); border-radius: 8px; padding: 12px; font-size: .85rem; }
@media (max-width: 560px) { section { padding: 16px 14px; } .headline { font-size: 1.25rem; } }
@media print { section { break-inside: avoid-page; } nav { display: none; } }
"""


def page(summary: Summary, metrics: Sequence[StepMetrics], examples: Sequence[Example]) -> str:
    """The whole report as one HTML document."""
    parts = (
        ("result", "Result", sections.result(summary)),
        ("accuracy", "Accuracy by kind of question", sections.accuracy(summary)),
        ("stages", "How it was made: the stages", sections.stages(summary)),
        ("learning", "How the student learned", learning(metrics)),
        ("judge", "Can the judge be trusted?", sections.judge(summary)),
        ("examples", "Examples", examples_section(examples)),
        ("run", "The run", sections.run_facts(summary)),
    )
    name = PurePath(summary.directory).name or summary.directory
    return document("Distillation report", name, parts)


def document(title: str, name: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """An HTML document that needs nothing beside itself. parts: (anchor, heading in plain text, HTML) of each section;
    the first is what the page is about, and the others are linked at the top."""
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in parts[1:])
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{content}</section>' for anchor, heading, content in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: {escape(title.lower())}</title><style>{_STYLE}</style></head>"
        f"<body><header><h1>{escape(title)} · {escape(name)}</h1><nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )
