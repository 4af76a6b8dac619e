"""The Flags notebook with its tables as the code gives them now; `make export` writes it where they have changed"""

import json
from pathlib import Path
from rm_nbdev.core.flags import flag_table, settings_tables

TABLES = {'display(Markdown(flag_table()))': flag_table, 'display(Markdown(settings_tables()))': settings_tables}  # Last line of a cell -> its text


def flags_text(top='.'):
    "The notebook as text; the same text where the tables are the same"
    path = Path(top)/'nbs/guides/flags.ipynb'
    text = path.read_text(encoding='utf-8')
    notebook, changed = json.loads(text), False
    for cell in notebook['cells']:
        table = TABLES.get(''.join(cell['source']).rpartition('\n')[2])
        if table is None: continue
        data = {'text/markdown': table().splitlines(keepends=True), 'text/plain': ['<Markdown>']}
        outputs = [dict(output_type='display_data', metadata={}, data=data)]
        changed |= cell['outputs'] != outputs
        cell['outputs'] = outputs
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n' if changed else text
