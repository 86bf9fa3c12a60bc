"""The texts of a finished knowledge job as the corpus that the other benchmarks take.

With the example model and both servers running, as README's "Run" starts them:

    laser-recsys prepare --output data
    laser-recsys group --data data
    laser-recsys prompts --data data --framework kar --kinds user --model MODEL --max-new-tokens 192
    laser-recsys generate --prompts data/prompts-kar.parquet --verifier ADDRESS --acceptance plain --output plain \\
        --max-new-tokens 192
    python -m benchmarks.record --prompts data/prompts-kar.parquet --knowledge plain/knowledge.parquet --kind user \\
        --model MODEL --output corpus_user.jsonl

Of items: the same with `--kinds item` and `--kind item`.

JSON lines, one a text, by increasing id: id (a number, as in MovieLens), prompt_token_ids, output_token_ids, text,
finish_reason. Texts should be plain: replays take them for what the model writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from laser_recsys.knowledge.prompt_files import PromptFiles
from laser_recsys.knowledge.rows import SCHEMA
from laser_recsys.parquet_files import read_rows
from laser_recsys.tokens import PromptTokenizer

COLUMNS = ("id", "kind", "token_ids", "text", "finish_reason", "acceptance")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="what was asked")
    parser.add_argument("--knowledge", type=Path, required=True, metavar="FILE", help="the plain texts that came")
    parser.add_argument("--kind", choices=("user", "item"), required=True)
    parser.add_argument("--model", required=True, metavar="PATH", help="that wrote them: its tokenizer")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines")
    arguments = parser.parse_args()
    rows = [row for row in read_rows(arguments.knowledge, SCHEMA, COLUMNS) if row["kind"] == arguments.kind]
    not_plain = {row["acceptance"] for row in rows} - {"plain"}
    if not rows or not_plain:
        parser.error(f"{arguments.knowledge} holds {len(rows)} texts of that kind, {not_plain or 'none'} not plain")
    rows.sort(key=lambda row: int(row["id"]))
    asked = {task.prompt.id: task.prompt for task in PromptFiles([arguments.prompts]) if task.key[1] == arguments.kind}
    tokenizer = PromptTokenizer(arguments.model)
    with arguments.output.open("w", encoding="utf8") as file:
        for row in rows:
            prompt = asked[row["id"]]
            prompt_ids = tokenizer.token_ids([prompt.text], prompt.system)[0]
            document = {"id": int(row["id"]), "prompt_token_ids": prompt_ids, "output_token_ids": row["token_ids"]}
            file.write(json.dumps(document | {name: row[name] for name in ("text", "finish_reason")}) + "\n")
    print(f"{len(rows)} texts: {arguments.output}")


if __name__ == "__main__":
    main()
