"""How a measured program is printed."""

BESIDE = {  # whose times are divided by -> as rows and their columns say it
    "rewrite": "to rewrite",
    "optax AdamW, float32": "to optax AdamW",
    "optax, float32": "to optax",
}


def line(key, row):
    """A row as text."""
    if "ms" not in row:
        return f"  {key:34} {row['error']}"
    ms, ratios = row["ms"], [(short.removeprefix("to "), row.get(short)) for short in BESIDE.values()]
    speed = f"{row['GB/s']:7.1f} GB/s" if row["floor_bytes"] else " " * 12
    return (
        f"  {key:34} {ms['median']:8.2f} ms ({ms['low']:.2f} to {ms['high']:.2f}) {speed}"
        + "".join(f" {ratio:5.2f} x {what}" for what, ratio in ratios if ratio)
        + f"  {row['temporary_bytes'] / 2**20:.1f} MiB"
        + (f", {row['kernels']} kernels" if row.get("kernels") else "")
    )


def first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
