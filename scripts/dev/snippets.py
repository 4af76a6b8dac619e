"""Every shell command and Python block that a page shows, run

`python -m scripts.dev.snippets NOTEBOOK...`, at the top of a checkout, runs the blocks of a page in a copy of the
checkout, one line for each; a block whose first line is a mark (`# needs a GPU`) is only parsed."""

import contextlib, functools, io, os, re, shlex, shutil, signal, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from fastcore.nbio import read_nb
from rm_nbdev.core.cli import COMMANDS, command_parser
from rm_nbdev.core.errors import UsageError, first_line

# What keeps a block from being run here
MARKS = ('needs a GPU', 'needs the Hub', 'needs the Hub and a GPU', 'needs a file of yours', 'needs SLURM', 'runs until ctrl-C', 'goes into a notebook')
LIMIT = 900  # Seconds that one block may take


@dataclass
class Block:
    "A block of a page"
    page: str      # Name of the notebook
    cell: int      # Its cell, from 0
    lang: str      # sh or python
    text: str      # What is to be run
    mark: str = '' # Of `MARKS`; such a block is only parsed
    def __str__(self):
        first = next((l for l in self.text.splitlines() if l.strip() and not l.startswith('#')), '')
        return f'{self.page}, cell {self.cell}: {first[:80]}'


_fenced = re.compile(r'^(?P<in> {0,3})(?P<ticks>`{3,}|~{3,}) *(?P<lang>[\w{}.+-]*)[^\n]*\n(?P<text>.*?)'
                     r'(?:^ {0,3}(?P=ticks)[`~]* *$|\Z(?P<open>))', re.M|re.S)
_command = re.compile(r'\s*(\$ |(rm-\w+|make|python3?|pip|papermill|sbatch|torchrun|nbdev-\w+|git|hf|export) )')


def _block(page, i, lang, text):
    m = re.match(r'#\s*((?:needs|runs until|goes into)\b.*?)\s*$', text.lstrip().split('\n', 1)[0])
    if m and m[1] not in MARKS: raise UsageError(f"{page}, cell {i}: {m[1]!r} is not a mark; the marks are {', '.join(MARKS)}")
    return Block(page, i, lang, text, m[1] if m else '')


def blocks(path):
    "The blocks of a page in its order; `UsageError` for what is not clear"
    try: cells = read_nb(path).cells
    except FileNotFoundError: raise UsageError(f'{path}: no such notebook') from None
    page, out = Path(path).name, []
    for i, c in enumerate(cells):
        if c.cell_type == 'code' and c.directives.get('eval:', c.directives.get('eval', '')) == 'false':
            out.append(_block(page, i, 'python', re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)))
        if c.cell_type != 'markdown': continue
        for m in _fenced.finditer(c.source):
            if m['open'] is not None: raise UsageError(f'{page}, cell {i}: a fence is not closed')
            lang = dict(bash='sh', shell='sh', console='sh', py='python').get(m['lang'], m['lang'])
            if lang in ('sh', 'python'): out.append(_block(page, i, lang, m['text']))
            elif not lang and _command.match(m['text']):
                line = m['text'].strip().splitlines()[0]
                raise UsageError(f'{page}, cell {i}: {line!r} looks like a command: mark the fence with sh')
    return out


def commands(text):
    "Words of each `rm-…` command in a shell block; lines joined, comments and redirections left out"
    out = []
    for line in re.sub(r'\\\n', ' ', text).splitlines():
        separators = r'\s*(?:&&|\|\||;|\||&)\s*' if '#' not in line else r'\s*(?:&&|\|\||;|\|)\s*'
        for part in re.split(separators, line.split(' #')[0]):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r'[A-Za-z_]\w*=.*', words[0]): words = words[1:]
            if not words or not words[0].startswith('rm-'): continue
            cut = next((i for i, w in enumerate(words) if re.match(r'\d*[<>]', w)), len(words))
            out.append(words[:cut])
    return out


def check_parses(block):
    "`UsageError` if bash, Python or a parser of the kit does not take a block"
    if block.lang == 'python':
        try: compile(block.text, block.page, 'exec')
        except SyntaxError as e: raise UsageError(f'{block}: {e}') from None
        return
    p = subprocess.run(['bash', '-n'], input=block.text, text=True, capture_output=True)
    if p.returncode: raise UsageError(f'{block}: {first_line(ValueError(p.stderr))}')
    for prog, *words in commands(block.text):
        if prog not in COMMANDS: raise UsageError(f"{block}: {prog}: not a command; the commands are {', '.join(COMMANDS)}")
        try: command_parser(prog)(words)
        except SystemExit as e:
            if e.code: raise UsageError(f'{block}: {prog} refuses its words') from None
        except UsageError as e: raise UsageError(f'{block}: {e}') from None


@functools.cache
def _help(prog):
    "What `prog --help` says; '' if there is no such command"
    if prog not in COMMANDS: return ''
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit): command_parser(prog)(['--help'])
    return out.getvalue()


def _unknown(span, targets):
    "Words of an inline command that do not exist"
    prog, *words = span.split()
    if prog == 'make': return [w for w in words if w not in targets and re.fullmatch(r'[a-z-]+', w)]
    if not _help(prog): return [prog]
    known = _help(prog).replace('-', '_')
    return [f for f in re.findall(r'(?<=\s)--[\w-]+', span) if f.replace('-', '_') not in known]


def check_inline(path, top='.'):
    "How many commands of the kit stand within sentences; `UsageError` for one, or a flag, that does not exist"
    makefile = (Path(top)/'Makefile').read_text(encoding='utf-8')
    found, targets = 0, set(re.findall(r'^([a-z-]+):', makefile, re.M))
    for i, c in enumerate(read_nb(path).cells):
        if c.cell_type != 'markdown': continue
        for span in re.findall(r'(?<!`)`((?:rm-[a-z]+|make)(?: [^`]*)?)`(?!`)', _fenced.sub('', c.source)):
            if bad := _unknown(span, targets): raise UsageError(f'{Path(path).name}, cell {i}: `{span}`: there is no {bad[0]}')
            found += 1
    return found


def sandbox(top, to):
    "A copy of the checkout's files, with its environment linked"
    top, to = Path(top).resolve(), Path(to)
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=top, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split('\0')):
        if not (top/name).is_file(): continue
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(top/name, to/name)
    (to/'.venv').symlink_to(Path(sys.executable).parent.parent)
    if (to/'.ci/venv').exists(): (to/'.ci/venv').write_text('#!/bin/sh\n')  # the environment belongs to the checkout
    subprocess.run(['git', 'init', '-q'], cwd=to, check=True)
    return to


def environment(to):
    "Variables for what runs in a copy: offline, one thread, the copy's modules first"
    drop = ('HF_TOKEN', 'WANDB_API_KEY', 'NAME', 'IN_TEST', 'MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')  # make's would win over ARGS
    kept = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith('SLURM_')}
    return kept | dict(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(to), HF_HUB_OFFLINE='1',
                       WANDB_MODE='offline', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', MPLBACKEND='Agg',
                       PYTHONUNBUFFERED='1', ARGS='--only metadata')


def run_shell(text, to, limit=LIMIT):
    "Exit code (None past the limit) and output of a shell block in a folder"
    p = subprocess.Popen(['bash', '-euo', 'pipefail', '-c', text], cwd=to, env=environment(to), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    def end():                                                        # the process and all that it started
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
    try:
        out = p.communicate(timeout=limit)[0]
        return p.returncode, out
    except subprocess.TimeoutExpired:
        end()
        return None, p.communicate()[0]
    finally: end()


def run_block(block, to, limit=LIMIT):
    "Seconds that a block without a mark took; `UsageError` with the end of what it wrote if it failed"
    start, text = time.time(), block.text
    if block.lang == 'python':
        (Path(to)/'.block.py').write_text(text, encoding='utf-8')
        text = 'python .block.py'
    code, out = run_shell(text, to, limit)
    end = '\n'.join(out.splitlines()[-30:])
    if code: raise UsageError(f'{block}: ended with {code}:\n{end}')
    if code is None: raise UsageError(f'{block}: ran past {limit} s:\n{end}')
    return time.time() - start


def run_page(path, top='.'):
    "Runs or parses every block of a page in a copy of the checkout; how many ran, how many were parsed"
    found = blocks(path)
    check_inline(path, top)
    with tempfile.TemporaryDirectory() as d:
        to = sandbox(top, d)
        for block in found:
            if block.mark: check_parses(block)
            took = f'parsed, {block.mark}' if block.mark else f'{run_block(block, to):.0f} s'
            print(f'{block}: {took}', flush=True)
    return sum(not b.mark for b in found), sum(bool(b.mark) for b in found)


def main(argv=None):
    "`python -m scripts.dev.snippets NOTEBOOK...`"
    try:
        for path in sys.argv[1:] if argv is None else argv:
            ran, parsed = run_page(path)
            print(f'{Path(path).name}: {ran} ran, {parsed} parsed', flush=True)
    except UsageError as e:
        print(f'scripts.dev.snippets: {e}', file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == '__main__': main()
