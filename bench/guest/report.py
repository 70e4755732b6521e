"""What comes out of the guest benchmark: medians, tables, and a chart."""
import math
import statistics

import jobs
import svg

NAMES = {"native": "native", "soft": "doppel soft", "tcg": "QEMU TCG", "kvm": "doppel kvm"}
COLOURS = {"soft": "#2a6f97", "tcg": "#e07a1f", "kvm": "#588157"}


def summary(samples):
    """Medians of row -> job -> engine -> [sample]: a list of {row, job, what, engines: engine -> {s, cpu_s, ratio, cpu_ratio}}."""
    out = []
    for row, by_job in samples.items():
        for name, by_engine in by_job.items():
            middle = {e: {k: statistics.median(x[k] for x in s) for k in ("s", "cpu_s")} | {"runs": len(s)} for e, s in by_engine.items()}
            for engine, m in middle.items():
                if "native" in middle and engine != "native":
                    m["ratio"] = m["s"] / middle["native"]["s"]
                    m["cpu_ratio"] = m["cpu_s"] / middle["native"]["cpu_s"] if middle["native"]["cpu_s"] else None
            out.append({"row": row, "job": name, "what": getattr(jobs.BY_NAME.get(name), "what", ""), "engines": middle})
    order = list(jobs.ROWS)
    return sorted(out, key=lambda x: order.index(x["row"]) if x["row"] in order else len(order))


def ratios(lines, row, engine, key="ratio"):
    """job -> ratio to native."""
    found = {x["job"]: x["engines"].get(engine, {}).get(key) for x in lines if x["row"] == row}
    return {job: r for job, r in found.items() if r}


def mean(lines, row, engine, key="ratio"):
    them = ratios(lines, row, engine, key)
    return statistics.geometric_mean(them.values()) if them else None


def rows(lines):
    return list(dict.fromkeys(x["row"] for x in lines))


def number(value, form="{:.2f}"):
    return form.format(value) if value is not None else ""


def markdown(head, body):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def goals(lines, others, cpu=False):
    """The table of goals; `cpu`: also by CPU time, in brackets."""
    def cell(row, engine, choose, form):
        words = []
        for key in ("ratio", "cpu_ratio") if cpu else ("ratio",):
            value = choose(lines, row, engine, key)
            words.append(form(value) if value else "")
        return words[0] + (f" (CPU {words[1]})" if cpu and words[1] else "")
    body = []
    for row in rows(lines):
        title, goal, worst = jobs.ROWS.get(row, (row, None, None))
        cells = [title, str(sum(x["row"] == row for x in lines)), f"<= {goal:g}x" if goal else ""]
        body.append(cells + [cell(row, e, mean, "{:.2f}x".format) for e in others])
        if worst:
            body.append(["worst single one", "", f"<= {worst:g}x"] + [cell(row, e, most, lambda w: f"{w[1]:.2f}x {w[0]}") for e in others])
    return markdown(["work inside the guest", "jobs", "goal"] + [f"{NAMES[e]} / native" for e in others], body)


def most(lines, row, engine, key):
    """(job, ratio) of the worst job."""
    return max(ratios(lines, row, engine, key).items(), key=lambda r: r[1], default=None)


def details(lines, others, cpu=True):
    """A table of jobs for each row."""
    columns = [(", s", "s", "{:.3f}"), (" / native", "ratio", "{:.2f}")] + ([(" CPU / native", "cpu_ratio", "{:.2f}")] if cpu else [])
    head = ["job", "native, s"] + [e + c[0] for e in others for c in columns]
    out = []
    for row in rows(lines):
        body = []
        for x in (x for x in lines if x["row"] == row):
            body.append([x["job"], number(x["engines"].get("native", {}).get("s"), "{:.3f}")] +
                        [number(x["engines"].get(e, {}).get(key), form) for e in others for _, key, form in columns])
        body.append(["geometric mean", ""] +
                    [number(mean(lines, row, e, key), form) if key != "s" else "" for e in others for _, key, form in columns])
        out.append(f"**{jobs.ROWS.get(row, (row,))[0]}**\n\n" + markdown(head, body) + "\n")
    return "\n".join(out)


def translation(lines, others):
    """What the first run of a short program costs more than the second: mostly translation."""
    by = {(x["row"], x["job"]): x["engines"] for x in lines}
    body = []
    for name in (job for row, job in by if row == "short"):
        first, second = by["short", name], by.get(("warm", name), {})
        cells = [name, number(1000 * first["native"]["s"], "{:.1f}") if "native" in first else ""]
        for e in others:
            pair = (first.get(e), second.get(e))
            ms = [1000 * m["s"] if m else None for m in pair]
            cells += [number(v, "{:.0f}") for v in ms] + [number(ms[0] - ms[1], "{:.0f}") if all(pair) else ""]
        body.append(cells)
    return markdown(["job", "native, ms"] + [f"{e} {k}" for e in others for k in ("first", "second", "difference")], body)


def chart(lines, others, path):
    """Bars of geometric means on a logarithmic scale, a dot for each job, a mark for each goal."""
    left, right, per_row = 210, 60, 22 * len(others) + 22
    shown = [r for r in rows(lines) if any(ratios(lines, r, e) for e in others)]
    width, top = 760, 62
    height = top + per_row * len(shown) + 34
    most = max((r for row in shown for e in others for r in ratios(lines, row, e).values()), default=2)
    end = 2 ** math.ceil(math.log2(max(most, 2)))

    def x(ratio):
        return left + (width - left - right) * math.log2(max(ratio, 0.7)) / math.log2(end)

    d = svg.Drawing(width, height, "Time inside the guest / time natively, geometric mean (less is better, 1 is native)")
    for i, e in enumerate(others):
        d.bar(10 + 130 * i, 34, 12, 12, COLOURS[e])
        d.text(27 + 130 * i, 45, NAMES[e])
    d.text(27 + 130 * len(others), 45, "dots: single jobs; dashes: goal")
    for k in range(int(math.log2(end)) + 1):
        d.line(x(2 ** k), top - 4, x(2 ** k), height - 26, "#ddd")
        d.text(x(2 ** k), height - 10, f"{2 ** k}x", 11, "middle", "#666")
    for i, row in enumerate(shown):
        y = top + per_row * i
        title, goal, _ = jobs.ROWS.get(row, (row, None, None))
        d.text(10, y + 11 * len(others) + 6, title, 12)
        for j, e in enumerate(others):
            value = mean(lines, row, e)
            if not value:
                continue
            d.bar(x(1), y + 22 * j, max(x(value) - x(1), 1), 18, COLOURS[e], f"{NAMES[e]}, {title}: {value:.2f}x")
            for job, ratio in ratios(lines, row, e).items():
                d.dot(x(ratio), y + 22 * j + 9, 3.5, "#111", f"{job}: {ratio:.2f}x")
            d.text(x(max(ratios(lines, row, e).values())) + 8, y + 22 * j + 14, f"{value:.1f}x", 12)
        if goal:
            d.line(x(goal), y - 5, x(goal), y + 22 * len(others) + 1, "#c1121f", 2, "4 3")
    d.line(x(1), top - 4, x(1), height - 26, "#222")
    d.write(path)
