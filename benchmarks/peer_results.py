"""From what the engines of `benchmarks/cpu_peers.py` measured to figures, ratios and bars.

Knows numbers. Must not know processes.
"""

import argparse
import statistics
from typing import Any

from benchmarks.common import say
from benchmarks.random_model import Shape

_WORKLOADS = ("single", "batch", "shared")
_VLLM_BAR = 1.5
_START_BAR = 20.0
_GENERATE_BAR = 2.5
_BANDWIDTH_BAR = 0.6


def assess(measured: dict[str, Any], bandwidth: float, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """results: a row per engine. ratios: ours over each peer's. bars: what is to be reached, and whether it is."""
    rows = {name: _row(row, args) for name, row in measured.items()}
    ours = rows.get("galley", {})
    if ours.get("decode_s_per_token"):
        # The table's part in the embedding of one token is nothing; as the tied head it is read whole.
        context_len = args.input_len + args.single_output_len / 2
        bytes_per_token = shape.weight_bytes_per_token() + context_len * shape.kv_bytes_per_token()
        ours["decode_bytes_per_token"] = round(bytes_per_token)
        ours["bandwidth_share"] = round(bytes_per_token / ours["decode_s_per_token"] / bandwidth, 3)
    for name, row in rows.items():
        if name != "galley" and "galley" in measured:
            row["same_first_tokens"] = _agreement(measured["galley"], measured[name])
    ratios = {name: _ratios(ours, row) for name, row in rows.items() if name != "galley"}
    return {
        "results": rows,
        "read_bandwidth_bytes_s": round(bandwidth),
        "ratios": ratios,
        "bars": _bars(ours, ratios),
    }


def _row(row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One engine's figures: medians over rounds of the medians over repeats, with all values beside them."""
    rounds = row["rounds"]
    result: dict[str, Any] = {"settings": row["settings"], "environment": row["environment"]}
    if "error" in row:
        result["error"] = row["error"]
    if not rounds:
        return result
    result |= {key: value for key, value in rounds[-1]["describe"].items() if key != "settings" or value}
    num_tokens = {
        "single": args.single_output_len,
        "batch": args.num_prompts * args.output_len,
        "shared": args.num_prompts * args.output_len,
    }
    medians: dict[str, list[float]] = {
        name: [statistics.median(one["workloads"][name]["seconds"]) for one in rounds]
        for name in rounds[0]["workloads"]
    }
    for name in _WORKLOADS:
        result[f"{name}_tok_s"] = round(num_tokens[name] / statistics.median(medians[name]), 2)
    decode_s = statistics.median(medians["single"]) - statistics.median(medians["single_first"])
    result["decode_s_per_token"] = decode_s / (args.single_output_len - 1)
    result["single_first_token_s"] = round(statistics.median(medians["single_first"]), 3)
    for kind in rounds[0]["starts"]:
        result[f"{kind}_s"] = round(statistics.median(statistics.median(one["starts"][kind]) for one in rounds), 2)
    result["seconds_by_round"] = [
        {name: [round(value, 4) for value in workload["seconds"]] for name, workload in one["workloads"].items()}
        | {kind: [round(value, 3) for value in values] for kind, values in one["starts"].items()}
        for one in rounds
    ]
    return result


def _agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """How many prompts got the same first token: proof that both compute the same model, bar ties in bfloat16."""
    pairs = [
        (mine, other)
        for our_round, their_round in zip(ours["rounds"], theirs["rounds"], strict=False)
        for name in _WORKLOADS
        for our_batch, their_batch in zip(
            our_round["workloads"][name]["first_tokens"], their_round["workloads"][name]["first_tokens"], strict=True
        )
        for mine, other in zip(our_batch, their_batch, strict=True)
    ]
    return f"{sum(mine == other for mine, other in pairs)}/{len(pairs)}" if pairs else None


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times as fast ours is: tokens/s over theirs, and their seconds to start over ours."""
    ratios = {
        f"{name}_tok_s": round(ours[f"{name}_tok_s"] / theirs[f"{name}_tok_s"], 2)
        for name in _WORKLOADS
        if f"{name}_tok_s" in ours and f"{name}_tok_s" in theirs
    }
    if ours.get("start_s"):
        ratios |= {kind: round(theirs[kind] / ours["start_s"], 2) for kind in theirs if kind.startswith("start")}
    return ratios


def _bars(ours: dict[str, Any], ratios: dict[str, dict[str, float]]) -> dict[str, Any]:

    def least(peers: tuple[str, ...], figure: str) -> float | None:
        """Against the best of the peers; None unless all of them ran, but not every one has starts."""
        if not all(ratios.get(peer) for peer in peers):
            return None
        return min((ratios[peer][figure] for peer in peers if figure in ratios[peer]), default=None)

    vllm, generate = ("vllm", "vllm_tuned"), ("transformers",)
    bars = {
        "batch_vs_vllm": (least(vllm, "batch_tok_s"), _VLLM_BAR),
        "single_vs_vllm": (least(vllm, "single_tok_s"), _VLLM_BAR),
        "start_vs_vllm": (least(vllm, "start_s"), _START_BAR),
        "batch_vs_generate": (least(generate, "batch_tok_s"), _GENERATE_BAR),
        "single_vs_generate": (least(generate, "single_tok_s"), _GENERATE_BAR),
        "bandwidth_share": (ours.get("bandwidth_share"), _BANDWIDTH_BAR),
    }
    return {
        name: {"value": value, "bar": bar, "met": None if value is None else value >= bar}
        for name, (value, bar) in bars.items()
    }


def print_tables(result: dict[str, Any]) -> None:
    """The figures for people."""
    columns = ("single_tok_s", "batch_tok_s", "shared_tok_s", "start_s", "start_compiled_s", "same_first_tokens")
    say(f"{'':28}" + "".join(f"{column:>18}" for column in columns))
    for name, row in result["results"].items():
        say(f"{name:28}" + "".join(f"{row.get(column) or '-':>18}" for column in columns))
        if "error" in row:
            say(f"    {row['error']}")
    say(f"\n{'galley is … times as fast as':28}" + "".join(f"{column:>18}" for column in columns[:-1]))
    for name, ratios in result["ratios"].items():
        say(f"{name:28}" + "".join(f"{ratios.get(column) or '-':>18}" for column in columns[:-1]))
    say(f"\nread bandwidth {result['read_bandwidth_bytes_s'] / 1e9:.1f} GB/s")
    verdicts = {None: "not measured", True: "met", False: "MISSED"}
    for name, bar in result["bars"].items():
        say(f"{name:28}{bar['value'] or '-':>18}  of {bar['bar']:<6} {verdicts[bar['met']]}")
