"Variants of one task timed in turns, and the table of their speeds: the first one is what the others are compared with"
import csv, time
from bench import spread, with_range

NUMBERS = ('median', 'low', 'high', 'ratio', 'ratio_low', 'ratio_high')

def compare(name, todo, rounds, close):
    "todo: variant -> (function, things it scores in a call), the plain one first. Rows of the table; the largest difference of rewards"
    found = {k:f() for k,(f,_) in todo.items()}
    order,want = [*todo],next(iter(found.values()))
    worst = max((r[:len(want)]-want).abs().max().item() for r in found.values())
    if worst > close: raise SystemExit(f'{name}: rewards differ by {worst:.1e}')
    speed = {k:[] for k in todo}
    for i in range(rounds):
        first = i % len(order)
        for k in order[first:] + order[:first]:
            score,n = todo[k]
            began = time.perf_counter()
            score()
            speed[k].append(n/(time.perf_counter()-began))
    rows = []
    for k,v in speed.items():
        ratios = [b/a for a,b in zip(speed[order[0]], v)]
        rows.append(dict(variant=k) | dict(zip(NUMBERS, (*spread(v), *spread(ratios)))))
    for r in rows: print(as_row(name, r), flush=True)
    return rows,worst

def as_row(name, r):
    speed,ratio = with_range(r, 'median', 'low', 'high'),with_range(r, 'ratio', 'ratio_low', 'ratio_high')
    return f"| {name} | {r['variant']} | {speed} | {ratio} |"

def head_of(unit): return f'| | | {unit}/s | × |\n|---|---|---|---|'

def save(head, out, worst, folder, stem, unit):
    "Writes STEM.csv and STEM.md; out: name -> rows. The path of the CSV file"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/f'{stem}.csv').open('w', newline='', encoding='utf-8') as f:
        w = csv.writer(f, lineterminator='\n')
        w.writerow(['size', 'variant', *NUMBERS])
        for name,rows in out.items():
            w.writerows([name, r['variant'], *(f'{r[k]:.4g}' for k in NUMBERS)] for r in rows)
    note = (f'{unit.capitalize()} per second, median (low–high) of the rounds; × against the first line, '
            f'computed round by round. Rewards of all variants within {worst:.0e}.')
    text = [head, '', note, '', head_of(unit), *(as_row(n, r) for n,rows in out.items() for r in rows)]
    (folder/f'{stem}.md').write_text('\n'.join(text) + '\n', encoding='utf-8')
    return folder/f'{stem}.csv'
