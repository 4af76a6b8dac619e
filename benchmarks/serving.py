"""rm-serve under load: latency, throughput against one request at a time and against a stock loop, memory

    python benchmarks/serving.py            # about two minutes; writes results/serving.csv and .md
    python benchmarks/serving.py --quick    # only a trial, ten seconds of load

A reward model with adapters on the embedded default's base is served by the command itself, in a process of its own.
A request is what GRPO asks for: a prompt of about 200 tokens with 16 responses of about 100. 64 clients ask as fast as
they are answered; then one client asks, once for whole groups and once for single conversations. The stock loop is
transformers as it comes, on the same texts: a chat template, a padded batch of the 16 conversations (as trl scores a
group), or one conversation at a time. It runs before and after the load, and the faster time counts. Rewards are
compared first. Where other programs compete for the cores, OMP_NUM_THREADS=1 gives steadier numbers, and the CPU
seconds of a group say more than the wall's: those of the server's process, or of the loop, tokenizing included.
"""
import argparse, asyncio, csv, json, os, random, re, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import psutil, torch
from rm_nbdev.core.config import Config
from rm_nbdev.data.synthetic import IDS, make_base
from rm_nbdev.data.templates import load_tokenizer
from rm_nbdev.models.make import make_model
from rm_nbdev.models.reward_model import save_weights
from rm_nbdev.scoring.classifier import plain_classifier
from rm_nbdev.scoring.load import load_reward_model
from bench import HERE, machine

GROUP,PROMPT,RESPONSE = 16,200,100     # Responses of a request; tokens, on average
CLIENTS = 64
WORDS = [w for w in IDS if w.isalpha()]
COLUMNS = dict(variant='', clients='clients', requests='requests', groups_per_s='groups/s', ratio='rm-serve is ×',
               cpu_ms='CPU ms a group', cpu_ratio='by CPU ×', p50_ms='p50 ms', p95_ms='p95 ms', p99_ms='p99 ms',
               max_ms='max ms')      # Columns of the CSV file -> heads of the table

def make(folder):
    "A checkpoint with adapters that were not trained: speed does not depend on what they say"
    base = str(make_base(quiet=True))
    model = make_model(Config('bt', base_model=base, seed=0, lora_r=8), pad_id=0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p)*.05)
    folder.mkdir()
    return save_weights(model, folder, base, load_tokenizer(base), 2048, 'truncate_prompt')

def requests(n, seed=0):
    "Prompts with 16 responses, lengths from half to one and a half times the average"
    rnd = random.Random(seed)
    def text(mean): return ' '.join(rnd.choice(WORDS) for _ in range(rnd.randint(mean//2, mean*3//2)))
    return [dict(prompt=text(PROMPT), responses=[text(RESPONSE) for _ in range(GROUP)]) for _ in range(n)]

def chats(request):
    "A request as conversations"
    asked = dict(role='user', content=request['prompt'])
    return [[asked, dict(role='assistant', content=r)] for r in request['responses']]

class Stock:
    "transformers as it comes"
    def __init__(self, checkpoint):
        rm = load_reward_model(checkpoint)
        self.model,self.tokenizer = plain_classifier(rm)[0].eval(),rm.tokenizer
        self.tokenizer.padding_side = 'right'

    @torch.no_grad()
    def rewards(self, conversations):
        "Of a padded batch"
        inputs = self.tokenizer.apply_chat_template(conversations, padding=True, return_dict=True, return_tensors='pt')
        return self.model(input_ids=inputs['input_ids'], attention_mask=inputs['attention_mask']).logits[:,0].tolist()

    def speed(self, todo, seconds, at_once):
        "Groups of 16 a second, `at_once` conversations in a batch; CPU milliseconds of a group"
        done,began,cpu = 0,time.perf_counter(),time.process_time()
        while time.perf_counter()-began < seconds:
            c = chats(todo[done % len(todo)])
            for i in range(0, GROUP, at_once): self.rewards(c[i:i+at_once])
            done += 1
        return done/(time.perf_counter()-began), (time.process_time()-cpu)*1000/done

@contextmanager
def serving(checkpoint):
    "rm-serve in a process; yields its port, and the process. It ends by SIGTERM"
    run = 'from rm_nbdev.serving.serve import main; main()'
    words = [sys.executable, '-c', run, checkpoint, '--port', '0', '--name', 'demo']
    with subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True) as p:
        line = next(l for l in p.stderr if 'ready on' in l)
        yield int(re.search(r':(\d+) with', line)[1]), psutil.Process(p.pid)
        p.terminate()
        print(p.communicate()[1].strip(), f'(exit code {p.returncode})')
        if p.returncode: raise SystemExit('the server did not end well')

def as_bytes(body, path='/score'):
    "An HTTP request"
    data = json.dumps(body).encode()
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n'
    return head.encode() + data

async def ask(reader, writer, data):
    "Status and body of a reply"
    writer.write(data)
    head = (await reader.readuntil(b'\r\n\r\n')).decode().lower()
    size = int(re.search(r'content-length: (\d+)', head)[1])
    return int(head.split()[1]), await reader.readexactly(size)

async def client(port, todo, until, found):
    "One client: the next request when the last one is answered"
    reader,writer = await asyncio.open_connection('127.0.0.1', port, limit=2**20)
    for data,n in todo:
        if time.perf_counter() >= until: break
        began = time.perf_counter()
        status,body = await ask(reader, writer, data)
        found.append((time.perf_counter()-began, status, status == 200 and len(json.loads(body)['rewards']) == n))
    writer.close()

async def metrics(port):
    "Name -> number, of what /metrics says without labels"
    reader,writer = await asyncio.open_connection('127.0.0.1', port, limit=2**20)
    _,body = await ask(reader, writer, b'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n')
    writer.close()
    return {k:float(v) for k,v in re.findall(r'^(\w+) (\S+)$', body.decode(), re.M)}

async def watch(port, until, memory):
    "The server's resident memory, once a second"
    while time.perf_counter() < until:
        memory.append((await metrics(port))['process_resident_memory_bytes']/2**20)
        await asyncio.sleep(1)

def cpu_seconds(process):
    "That a process has used"
    times = process.cpu_times()
    return times.user + times.system

async def load(port, clients, seconds, bodies):
    "`clients` at once for `seconds`: what each request took; memory"
    found,memory,until = [],[],time.perf_counter()+seconds
    def endless(i):
        while True:
            yield bodies[i % len(bodies)]
            i += clients
    began = time.perf_counter()
    await asyncio.gather(watch(port, until, memory), *(client(port, endless(i), until, found) for i in range(clients)))
    return found, memory, time.perf_counter()-began

def row(variant, clients, port, process, seconds, bodies, per_group=1):
    "One line of the table; the server's memory"
    cpu = cpu_seconds(process)
    found,memory,took = asyncio.run(load(port, clients, seconds, bodies))
    cpu,groups = cpu_seconds(process)-cpu,len(found)/per_group
    lost = [status for _,status,whole in found if not whole]
    if lost: raise SystemExit(f'{variant}: {len(lost)} of {len(found)} requests without rewards (status {lost[0]})')
    times = sorted(t*1000 for t,*_ in found)
    def at(share): return times[min(len(times)-1, int(len(times)*share))]
    return dict(variant=variant, clients=clients, requests=len(found), groups_per_s=groups/took, cpu_ms=cpu*1000/groups,
                p50_ms=at(.5), p95_ms=at(.95), p99_ms=at(.99), max_ms=times[-1]), memory

def as_line(r):
    "A row in Markdown"
    def cell(k): return '' if r.get(k) is None else r[k] if isinstance(r[k], str) else f'{r[k]:.4g}'
    return '| ' + ' | '.join(cell(k) for k in COLUMNS) + ' |'

def measure(seconds, folder):
    "Rows, and sentences on memory and on what was computed"
    checkpoint,todo = make(folder/'bt'),requests(256)
    stock,rows,speeds = Stock(checkpoint),[],{}
    groups = [(as_bytes(r), GROUP) for r in todo]
    singles = [(as_bytes(dict(conversations=[c])), 1) for r in todo[:32] for c in chats(r)]
    def time_stock():
        for name,n in (('stock loop, batches of 16', GROUP), ('stock loop, one conversation at a time', 1)):
            speeds.setdefault(name, []).append(stock.speed(todo, seconds/10, n))
    time_stock()
    with serving(checkpoint) as (port,process):
        async def first():
            reader,writer = await asyncio.open_connection('127.0.0.1', port, limit=2**20)
            return [json.loads((await ask(reader, writer, groups[i][0]))[1])['rewards'] for i in range(4)]
        found = asyncio.run(first())
        apart = max(abs(a-b) for r,own in zip(todo, found) for a,b in zip(own, stock.rewards(chats(r))))
        if apart > 1e-4: raise SystemExit(f'rewards differ by {apart:.1e}')
        line,memory = row('rm-serve', CLIENTS, port, process, seconds, groups)
        rows,after = [line],asyncio.run(metrics(port))
        rows.append(row('rm-serve, a group at a time', 1, port, process, seconds/5, groups)[0])
        rows.append(row('rm-serve, one conversation at a time', 1, port, process, seconds/5, singles, GROUP)[0])
    time_stock()
    rows += [dict(variant=k, groups_per_s=max(o[0] for o in v), cpu_ms=min(o[1] for o in v)) for k,v in speeds.items()]
    for r in rows: r |= dict(ratio=line['groups_per_s']/r['groups_per_s'], cpu_ratio=r['cpu_ms']/line['cpu_ms'])
    tenth = max(1, len(memory)//10)
    share = after['rm_serve_computed_tokens_total']/after['rm_serve_tokens_total']
    notes = [f'Nothing lost: {line["requests"]} requests of {CLIENTS} clients in {seconds:.0f} s, each with its {GROUP} '
             f'rewards, within {apart:.0e} of stock transformers.',
             f'Memory of the server: {memory[tenth]:.0f} MiB after {tenth} s, {memory[-1]:.0f} MiB at the end, '
             f'{max(memory):.0f} MiB at most.',
             f'{share:.0%} of the tokens were computed, in {after["rm_serve_passes_total"]:.0f} passes.']
    return rows, notes

def save(folder, head, rows, notes):
    "Writes serving.csv and serving.md; the path of the CSV file"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/'serving.csv').open('w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, list(COLUMNS), lineterminator='\n')
        w.writeheader()
        w.writerows({k:f'{v:.4g}' if isinstance(v, float) else v for k,v in r.items()} for r in rows)
    table = ['| ' + ' | '.join(COLUMNS.values()) + ' |', '|---'*len(COLUMNS) + '|']
    text = '\n'.join([head, '', *notes, '', *table, *map(as_line, rows)])
    (folder/'serving.md').write_text(text + '\n', encoding='utf-8')
    print(text)
    return folder/'serving.csv'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='ten seconds of load, only to try it; the numbers are not reliable')
    p.add_argument('--seconds', type=float, default=None, help='of load (default: 60, with --quick 10)')
    p.add_argument('--output', type=Path, help='folder of serving.csv and .md; without it `results/` beside this file, '
                   'or a new temporary one with --quick')
    a = p.parse_args()
    head = (f'{machine()}; load {os.getloadavg()[0]:.1f}; groups of {GROUP}, prompts of about {PROMPT} tokens, '
            f'responses of {RESPONSE}')
    folder = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results')
    with tempfile.TemporaryDirectory() as d: rows,notes = measure(a.seconds or (10 if a.quick else 60), Path(d))
    print('->', save(folder, head, rows, notes))

if __name__ == '__main__': main()
