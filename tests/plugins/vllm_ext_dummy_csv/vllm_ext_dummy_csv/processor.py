"""CSV in, CSV out."""

import csv
import io
import json
from dataclasses import dataclass

from vllm_ext import IOProcessor
from vllm_ext.contracts.pooling_params import PoolingParams

EMBEDDING = "embedding"


@dataclass
class Table:
    """Rows by column, and the column that is embedded."""

    columns: list[str]
    rows: list[dict[str, str]]
    column: str

    @property
    def rows_with_text(self) -> list[dict[str, str]]:
        return [row for row in self.rows if row[self.column].strip()]


class CSVEmbeddings(IOProcessor[Table, str]):
    """The text of a CSV file becomes the same file with a column ``embedding``: a JSON list of numbers in each row.

    The option ``column`` says which column is embedded, by default ``text``; a row without text gets no embedding.
    """

    def __init__(self, vllm_config, renderer):
        super().__init__(vllm_config, renderer)
        options = vllm_config.additional_config.get("csv_embeddings", {})
        self.column = options.get("column", "text")
        self.tables: dict[str, Table] = {}

    def parse_data(self, data: object) -> Table:
        if not isinstance(data, str):
            raise ValueError(f"the data is {type(data).__name__}; it takes the text of a CSV file")
        reader = csv.DictReader(io.StringIO(data), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"line {reader.reader.line_num}: {error}") from error
        columns = list(reader.fieldnames or ())
        if self.column not in columns:
            raise ValueError(
                f"there is no column {self.column!r}; the first line has: {', '.join(columns) or 'nothing'}"
            )
        if EMBEDDING in columns:
            raise ValueError(f"there is a column {EMBEDDING!r} already")
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not as many cells as the first line")
        table = Table(columns, rows, self.column)
        if not table.rows_with_text:
            raise ValueError(f"no row has a text in column {self.column!r}")
        return table

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        params = PoolingParams() if params is None else params
        params.task = "embed"
        return params

    def pre_process(self, prompt: Table, request_id: str | None = None, **kwargs) -> list[str]:
        self.tables[request_id] = prompt
        return [row[prompt.column] for row in prompt.rows_with_text]

    def post_process(self, outputs, request_id: str | None = None, **kwargs) -> str:
        table = self.tables.pop(request_id)
        for row, output in zip(table.rows_with_text, outputs, strict=True):
            row[EMBEDDING] = json.dumps(output.outputs.data.tolist())
        text = io.StringIO()
        writer = csv.DictWriter(text, [*table.columns, EMBEDDING], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.rows)
        return text.getvalue()

    def discard(self, request_id: str) -> None:
        self.tables.pop(request_id, None)
