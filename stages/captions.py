"""The gate: digest and probe every input file, read every caption, and stop before anything is decoded if data is bad.

Reads data.root and the base model's tokenizer, where it has one. Writes data/sources.parquet (the only table with names
of files), data/captions.parquet, data/columns.parquet (the other columns of metadata files), data/tracks.parquet and
reports/captions/.
"""

from __future__ import annotations

from pathlib import Path

import typer

from framelora import files
from framelora.cells.store import open_store
from framelora.console import UserError, command, relative, say
from framelora.dataset import captions, gate, sources, tracks
from framelora.dataset.prompts import full_text, tag_variants
from framelora.dataset.summary import issues_report
from framelora.dataset.tokens import text_length
from framelora.params import load_params
from framelora.schema.data import Captions


def main() -> None:
    """Check the inputs and write the tables of sources, captions and columns."""
    params = load_params()
    root = Path(params.data.root)
    store = open_store()
    length = text_length(Path(params.model.base))
    inputs = gate.inspect(root, store, params.data, params.captions, params.extract, params.pair, length)
    files.replace_folder(Path("reports/captions"), issues_report(inputs, store))
    gate.show(inputs)
    gate.stop_at_errors(inputs.issues)

    rows = sources.source_rows(inputs.sources, inputs.digests, inputs.facts.__getitem__)
    files.write_table(Path("data/sources.parquet"), list(rows), sources.SCHEMA)
    texts = dict.fromkeys(inputs.content_ids.values(), "")
    texts |= {content_id: caption.text for content_id, caption in inputs.gathered.captions.items()}
    captioned = [caption_row(content_id, text, params.captions) for content_id, text in sorted(texts.items())]
    files.write_table(Path("data/captions.parquet"), captioned, captions.SCHEMA)
    columns = captions.column_rows(inputs.gathered.columns)
    files.write_table(Path("data/columns.parquet"), columns, captions.COLUMNS_SCHEMA)
    files.write_table(Path("data/tracks.parquet"), track_rows(inputs), tracks.SCHEMA)
    found = {kind: sum(source.kind == kind for source in inputs.sources) for kind in ("video", "image", "image_pair")}
    images = f"{found['image']} images, " if params.data.images else ""
    counted = f"{len(texts)} contents; captions are counted in {length.unit}"
    say(f"captions: {found['video']} clips, {images}{found['image_pair']} image pairs, {counted}")
    if not inputs.sources:
        raise UserError(
            f"data.root: none of the files in {relative(root)} can be read: see reports/captions/issues.csv"
        )


def track_rows(inputs: gate.Inputs) -> list[dict[str, object]]:
    """Rows of `tracks.SCHEMA`: a row a content, by the first of its names that has tracks."""
    rows: dict[str, dict[str, object]] = {}
    for source in inputs.sources:
        if source.path in inputs.tracks:
            facts, content_id = inputs.facts[source.path], inputs.content_ids[source.name]
            size = {"width": facts.width, "height": facts.height}
            rows.setdefault(content_id, {"content_id": content_id, "tracks": inputs.tracks[source.path], **size})
    return [rows[content_id] for content_id in sorted(rows)]


def caption_row(content_id: str, text: str, params: Captions) -> dict[str, object]:
    """A row of `captions.SCHEMA`."""
    whole = full_text(text, trigger_word=params.trigger_word, prefix=params.prefix, suffix=params.suffix)
    variants = tag_variants(whole, count=params.tag_variants, keep=params.keep_tags, seed=params.tag_seed)
    return {"content_id": content_id, "text": whole, "variants": variants}


if __name__ == "__main__":
    typer.run(command(main))
