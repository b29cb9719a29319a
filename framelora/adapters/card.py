"""The model card that is written beside an exported adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence

from framelora.adapters.state import LoraState

LOADING = {
    "peft": "    from peft import PeftModel\n    model = PeftModel.from_pretrained({network}, {path!r})",
    "diffusers": (
        "    framelora generate --adapter {path}@0.15 ...\n\n"
        "or, where the pipeline of the base loads LoRAs, `pipe.load_lora_weights({path!r})`."
    ),
    "kohya": (
        "    framelora generate --adapter {path}@0.15 ...\n\n"
        "or as a LoRA in EasyAnimate's predict scripts and in ComfyUI. To every weight it adds\n"
        "`strength * alpha / rank * lora_up @ lora_down`."
    ),
}


def model_card(
    state: LoraState, *, name: str, path: str, form: str, network: str, licence: str, idle: Sequence[str], sheet: bool
) -> str:
    """A README.md with the YAML header that Hugging Face reads.

    Args:
        state: the adapter.
        name: title.
        path: what is loaded, as it is called beside the card.
        form: peft, diffusers or kohya.
        network: what the adapter is put on.
        licence: identifier for the header.
        idle: layers that reach no output, on which the adapter is zero.
        sheet: whether `contact_sheet.png` lies beside the card.
    """
    ranks = sorted({layer.rank for layer in state.layers.values()})
    count = sum(layer.up.numel() + layer.down.numel() for layer in state.layers.values())
    kind = "DoRA" if state.dora else "LoRA"
    rank = ", ".join(map(str, ranks))
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        "library_name: peft" if form == "peft" else "library_name: diffusers",
        "tags: [lora, text-to-video]",
        "---",
        "",
        f"# {name}",
        "",
        f"{kind} on {len(state.layers)} layers of a {network}, rank {rank}, {count:,} parameters.",
        "",
        *(["![Contact sheet](contact_sheet.png)", ""] if sheet else []),
        "## How to load",
        "",
        LOADING[form].format(network=network, path=path),
        "",
    ]
    if made := state.lineage.get("pseudo_middles"):
        told = ", ".join(f"{count} by {method}" for method, count in made.items())
        lines += [f"**It learned from windows with made middles** ({told}), not from true frames alone.", ""]
    if idle:
        lines += [f"{len(idle)} of its layers reach no output of the model and hold zeros: {', '.join(idle)}.", ""]
    lines += [
        "## Lineage",
        "",
        *(f"    {line}" for line in json.dumps(state.lineage, indent=2, sort_keys=True).splitlines()),
        "",
    ]
    return "\n".join(lines)
