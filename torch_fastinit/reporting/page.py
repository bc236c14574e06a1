"""A report as HTML: a table for a notebook, and a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from torch_fastinit.planning.report import plural
from torch_fastinit.reporting.measured import HEADINGS, Histogram, Measured, cells

_WIDTH, _HEIGHT = 196, 48
#: After what a line may break, by heading.
_BREAKS = {"name": ".", "shape": "x"}


def rows_of_html(rows: Sequence[Measured], summary: str) -> str:
    """A plain table for a notebook, which has colours of its own; what is off is bold."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{_bold(escape(cell), bool(row.faults))}</td>" for cell in cells(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>{escape(summary)}</p>"
    )


def _bold(text: str, yes: bool) -> str:
    return f"<b>{text}</b>" if yes and text else text


def page(rows: Sequence[Measured], summary: str) -> str:
    """The whole page."""
    columns = ("histogram", *HEADINGS)
    head = "".join(
        f'<th scope="col"><button type="button">{escape(heading)}</button></th>'
        if i
        else f'<th scope="col">{heading}</th>'
        for i, heading in enumerate(columns)
    )
    options = "".join(f'<option value="{i}">{escape(heading)}</option>' for i, heading in enumerate(columns) if i)
    body = "\n".join(_row(row) for row in rows)
    return (
        _PAGE.replace("@SUMMARY@", escape(summary))
        .replace("@OPTIONS@", options)
        .replace("@HEAD@", head)
        .replace("@BODY@", body)
    )


def _row(row: Measured) -> str:
    """Numbers sort as numbers, by what a cell shows rounded; the rest as text."""
    share = row.zeros / row.count if row.count else 0.0
    numbers = {
        "shape": row.count,
        "mean": row.mean,
        "std": row.std,
        "min": row.min,
        "max": row.max,
        "zeros": share,
        "not finite": row.nonfinite,
        "off": len(row.faults),
    }
    promised = {"mean": row.expected_mean, "std": row.expected_std, "min": row.low, "max": row.high}
    line = [f"<td>{_picture(row.histogram)}</td>"]
    for heading, cell in zip(HEADINGS, cells(row), strict=True):
        key = f' data-v="{numbers[heading]!r}"' if heading in numbers else ""
        to_be = promised.get(heading)
        more = "" if to_be is None else f"<small>{to_be:.4g}</small>"
        text = escape(cell)
        if heading in _BREAKS:
            text = text.replace(_BREAKS[heading], f"{_BREAKS[heading]}<wbr>")
        line.append(f'<td data-h="{escape(heading)}"{key}>{text}{more}</td>')
    return f"<tr{' class=off' if row.faults else ''}>{''.join(line)}</tr>"


def _picture(histogram: Histogram | None) -> str:
    """Bars of what was found, and a line of what was promised."""
    if histogram is None:
        return ""
    expected = histogram.expected
    top = max(*histogram.counts, *expected, 1)
    step = _WIDTH / len(histogram.counts)

    def y(count: float) -> str:
        return f"{_HEIGHT - (_HEIGHT - 2) * count / top:.4g}"

    bars = "".join(
        f"M{i * step:g} {_HEIGHT}V{y(count)}h{step:g}V{_HEIGHT}" for i, count in enumerate(histogram.counts) if count
    )
    line = ""
    if expected:
        steps = "".join(f"V{y(count)}h{step:g}" for count in expected)
        line = f'<path class="promised" d="M0 {_HEIGHT}{steps}V{_HEIGHT}"/>'
    label = f"{plural(sum(histogram.counts), 'element')} from {histogram.low:.4g} to {histogram.high:.4g}"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="found" d="{bars}"/>{line}</svg>'
        f"<figcaption><span>{histogram.low:.3g}</span><span>{histogram.high:.3g}</span></figcaption></figure>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report: initial values</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1a1c20; --dim: #5a6068; --line: #d8dce2; --bar: #9db7d8;
  --promised: #b03a00; --off: #b00020; --offback: #fdeeee; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15171a; --text: #e6e8eb; --dim: #a0a7b0; --line: #353a41; --bar: #456a99; --promised: #ffab6b;
    --off: #ff8a8a; --offback: #361c1e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; background: var(--back); color: var(--text);
  font: 14px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; color: var(--dim); }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .75rem 0; align-items: center; }
input[type=search] { flex: 1 1 10rem; min-width: 0; max-width: 24rem; }
input, select, button { font: inherit; }
table { width: 100%; border-collapse: collapse; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--line); padding: .25rem .4rem;
  position: sticky; top: 0; background: var(--back); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--promised); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td { border-bottom: 1px solid var(--line); padding: .3rem .4rem; vertical-align: top; overflow-wrap: anywhere; }
td[data-v] { font-variant-numeric: tabular-nums; white-space: nowrap; }
td[data-h=shape], td[data-h=dtype] { overflow-wrap: normal; }
td[data-h=shape], td[data-h=off] { white-space: normal; }
td[data-h=name] { font-weight: 600; min-width: 8rem; }
td small { display: block; color: var(--promised); font-size: .85em; }
tr.off { background: var(--offback); }
td[data-h=off] { color: var(--off); font-weight: 600; }
tr:not(.off) td[data-h=off] { color: var(--dim); font-weight: 400; }
tr[hidden] { display: none !important; }
figure { margin: 0; width: 12rem; max-width: 100%; }
svg { display: block; width: 100%; height: 3rem; }
.found { fill: var(--bar); }
.promised { fill: none; stroke: var(--promised); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
figcaption { display: flex; justify-content: space-between; color: var(--dim); font-size: .8em; }
.key { color: var(--promised); }
@media (max-width: 75rem) {
  thead { display: none; }
  table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .2rem .6rem;
    padding: .6rem .4rem; border-bottom: 1px solid var(--line); content-visibility: auto;
    contain-intrinsic-size: auto 16rem; }
  td { display: block; border: 0; padding: 0; min-width: 0; }
  td:empty { display: none; }
  td[data-h]::before { content: attr(data-h); display: block; color: var(--dim); font-size: .8em; font-weight: 400; }
  td[data-h=name], td[data-h=promise], td[data-h=off] { grid-column: 1 / -1; }
  td[data-h=name] { order: -1; }
  td:first-child { grid-column: 1 / -1; }
  td:first-child figure { width: 100%; max-width: 24rem; }
}
</style>
</head>
<body>
<h1>Initial values</h1>
<p>@SUMMARY@</p>
<p>Bars are what was found (of large tensors in a sample); <span class="key">lines, and the numbers below others, are
what was promised</span>. The first and the last bar hold what lies further out, too.</p>
<form onsubmit="return false">
<input type="search" id="find" placeholder="part of a name" aria-label="part of a name">
<label><input type="checkbox" id="flagged"> flagged alone</label>
<label>sort by <select id="sort"><option value="">order in the model</option>@OPTIONS@</select></label>
<label><input type="checkbox" id="down"> descending</label>
<output id="shown"></output>
</form>
<table>
<thead><tr>@HEAD@</tr></thead>
<tbody>
@BODY@
</tbody>
</table>
<script>
"use strict";
const get = (id) => document.getElementById(id);
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
const rows = [...body.rows];
const key = (row, column) => {
  const cell = row.cells[column];
  return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
};
function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
  return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;
}
function arrange() {
  const column = get("sort").value, sign = get("down").checked ? -1 : 1;
  const order = rows.map((row, i) => [column === "" ? i : key(row, Number(column)), row]);
  order.sort((a, b) => sign * compare(a[0], b[0]));
  body.append(...order.map((pair) => pair[1]));
  heads.forEach((head, i) => {
    if (column !== "" && i === Number(column)) head.ariaSort = sign > 0 ? "ascending" : "descending";
    else head.removeAttribute("aria-sort");
  });
}
function filter() {
  const part = get("find").value.toLowerCase(), flagged = get("flagged").checked;
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.cells[1].textContent.toLowerCase().includes(part) || (flagged && !row.classList.contains("off"));
    shown += !row.hidden;
  }
  get("shown").textContent = `${shown} shown`;
}
heads.forEach((head, i) => head.firstElementChild?.addEventListener("click", () => {
  get("down").checked = get("sort").value === String(i) && !get("down").checked;
  get("sort").value = String(i);
  arrange();
}));
for (const id of ["sort", "down"]) get(id).addEventListener("change", arrange);
get("find").addEventListener("input", filter);
get("flagged").addEventListener("change", filter);
filter();
</script>
</body>
</html>
"""
