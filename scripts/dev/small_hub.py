"""A small Hugging Face Hub for tests: its protocol on loopback, in memory, with faults on demand

What happens to a push when the Hub answers 503, hangs, or commits and then loses the answer cannot be tried on the
real Hub. This one speaks as much of the protocol as the real `huggingface_hub` client needs to create repositories,
commit, tag, list and download, and it fails where a test tells it to. It logs each request with the number of bytes
in its body, so that a test can count what was sent. It binds to loopback only, and its tokens are random.

A fault names the requests it meets by a pattern on `METHOD path`, what it does to them, and how many times:

    401, 403, 404, 409, 429, 500, 502, 503 ...   that status; nothing was done
    cut          the connection closes before an answer; nothing was done
    cut_inside   it was done, the connection closes in the middle of the answer
    lost         it was done, the connection closes before the answer
    hang         no answer, ever; nothing was done
    trickle      the answer comes byte by byte and never ends
"""

import base64, contextlib, hashlib, json, os, re, secrets, tempfile, threading
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse
import yaml

# Names of files that are kept as LFS objects
LFS = re.compile(r'\.(safetensors|bin|pt|pth|h5|onnx|model|parquet|zip)$|^(tokenizer\.json)$')

def git_sha1(
    data:bytes, # Content of a file
)->str:         # Its hash in git
    "The hash that git gives a file"
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()

@dataclass
class Blob:
    "A file in a commit"
    data:bytes        # Its content
    lfs:bool=False    # Kept as an LFS object
    @property
    def oid(self): return git_sha1(self.data)
    @property
    def sha256(self): return hashlib.sha256(self.data).hexdigest()
    def entry(self, path): # As the Hub lists it
        out = dict(type='file', path=path, size=len(self.data), oid=self.oid)
        if self.lfs: out['lfs'] = dict(oid=self.sha256, size=len(self.data), pointerSize=130)
        return out

@dataclass
class Commit:
    "A state of a repository"
    oid:str; files:dict; title:str; parent:str|None; date:str

class Refused(Exception):
    "An answer that is an error"
    def __init__(self, status, message, code=None, url=None):
        super().__init__(message)
        self.status,self.code,self.url = status,code,url

class Repo:
    "Commits, branches and tags"
    def __init__(self, private=False):
        self.private,self.commits,self.branches,self.tags = private,{},{},{}
        attributes = Blob(b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n')
        self.commit('main', {'.gitattributes':attributes}, 'initial commit')

    def commit(self, branch, files, title): # A new state of a branch
        parent = self.branches.get(branch)
        content = [len(self.commits), parent, title, {k:v.oid for k,v in files.items()}, secrets.token_hex(8)]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        now = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.000Z')
        self.commits[oid] = Commit(oid, files, title, parent, now)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, rev): # The commit that a branch, a tag or a hash names
        oid = self.branches.get(rev) or self.tags.get(rev) or rev
        if oid not in self.commits: raise Refused(404, f'Invalid rev id: {rev}', 'RevisionNotFound')
        return self.commits[oid]

    def history(self, rev): # Newest first
        commit,out = self.at(rev),[]
        while commit:
            out.append(commit)
            commit = self.commits.get(commit.parent)
        return out

@dataclass
class Fault:
    "Something that goes wrong; see the table at the top"
    match:str              # Regular expression, searched in 'METHOD path'
    kind:int|str           # A status, or one of cut, cut_inside, lost, hang, trickle
    times:float=1          # How many times; `math.inf`: always
    retry_after:int|None=None # Seconds in a Retry-After header
    skip:int=0             # Number of matching requests to let pass first
    met:int=0              # How many times it has happened

    def meets(self, request):
        if self.times <= 0 or not re.search(self.match, request): return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1; self.met += 1
        return True

@dataclass
class Request:
    "An entry of the log"
    method:str
    path:str
    sent:int                   # Bytes in its body
    user:str|None
    fault:int|str|None=None    # Kind of the fault that it met
    status:int|None=None       # Of the answer

_ROUTES = []
def route(method, pattern): # Decorator: this method answers these requests
    def _add(f): _ROUTES.append((method, re.compile(pattern+'$'), f)); return f
    return _add

_ID = r'(?P<repo>[^/]+/[^/]+)'
_KIND = '(?:models|datasets)'   # Reading: both kinds of repositories have one list of names

class Routes:
    "What the Hub answers: a route returns what becomes JSON, or raises `Refused`"
    def __init__(self,
        hub,     # The `SmallHub`
        user,    # Name of the user who asks; None without a valid token
        query,   # Of the URL, parsed
        body,    # Bytes
        headers, # Of the request
    ): self.hub,self.user,self.query,self.body,self.headers = hub,user,query,body,headers

    @property
    def json(self): return json.loads(self.body or b'{}')

    def may_write(self, namespace): # Rights of the login
        if self.user is None: raise Refused(401, 'Invalid username or password.')
        user = self.hub.users[self.user]
        only_reads = namespace != self.user and user['orgs'].get(namespace, 'read') == 'read'
        if user['role'] == 'read' or only_reads:
            raise Refused(403, f"You don't have the rights to write to {namespace}")

    def get(self, repo, write=False): # The repository, if the login may see it
        namespace,found = repo.split('/')[0],self.hub.repos.get(repo)
        if write: self.may_write(namespace)
        if found and found.private:
            if self.user is None or namespace not in (self.user, *self.hub.users[self.user]['orgs']): found = None
        if found is None: raise Refused(404 if self.user else 401, 'Repository not found', 'RepoNotFound')
        return found

    @route('GET', '/api/whoami-v2')
    def whoami(self):
        if self.user is None: raise Refused(401, 'Invalid user token.')
        user = self.hub.users[self.user]
        orgs = [dict(type='org', name=name, roleInOrg=role) for name,role in user['orgs'].items()]
        auth = dict(type='access_token', accessToken=dict(displayName='test', role=user['role']))
        return dict(type='user', name=self.user, orgs=orgs, auth=auth)

    @route('POST', '/api/repos/create')
    def create(self):
        wanted = self.json
        namespace = wanted.get('organization') or self.user
        self.may_write(namespace)
        name = f"{namespace}/{wanted['name']}"
        url = f'{self.hub.url}/{name}'
        if name in self.hub.repos: raise Refused(409, f'You already created this model repo: {name}', url=url)
        self.hub.repos[name] = Repo(wanted.get('visibility') == 'private' or bool(wanted.get('private')))
        return dict(url=url, name=name, id=name)

    @route('POST', '/api/validate-yaml')
    def validate(self):
        m = re.match(r'---\n(.*?)\n---\n', self.json['content'], re.S)
        try: meta = yaml.safe_load(m.group(1)) if m else {}
        except yaml.YAMLError as e: raise Refused(400, f'YAML: {str(e).splitlines()[0]}', 'yaml')
        if not isinstance(meta, dict): raise Refused(400, 'the metadata must be a mapping', 'yaml')
        return dict(errors=[], warnings=[] if m else [dict(message='empty or missing yaml metadata in repo card')])

class Reading(Routes):
    "Routes that change nothing"
    @route('GET', f'/api/{_KIND}/{_ID}(/revision/(?P<rev>[^/]+))?')
    def info(self, repo, rev=None):
        found = self.get(repo)
        commit = found.at(rev or 'main')
        fixed = dict(_id='0', gated=False, disabled=False, downloads=0, likes=0, tags=[])
        files = [dict(rfilename=p) for p in commit.files]
        return dict(id=repo, modelId=repo, sha=commit.oid, private=found.private, siblings=files) | fixed

    @route('GET', f'/api/{_KIND}/{_ID}/refs')
    def refs(self, repo):
        found = self.get(repo)
        def listed(d, kind): return [dict(name=k, ref=f'refs/{kind}/{k}', targetCommit=v) for k,v in d.items()]
        return dict(branches=listed(found.branches, 'heads'), tags=listed(found.tags, 'tags'), converts=[])

    @route('GET', f'/api/{_KIND}/{_ID}/tree/(?P<rev>[^/]+)(/(?P<path>.*))?')
    def tree(self, repo, rev, path=None):
        files = self.get(repo).at(rev).files
        if path: files = {k:v for k,v in files.items() if k.startswith(path.strip('/') + '/')}
        if path and not files: raise Refused(404, f'{path} does not exist', 'EntryNotFound')
        if self.query.get('recursive', ['false'])[0].lower() in ('true', '1'):
            return [blob.entry(k) for k,blob in sorted(files.items())]
        depth = len(path.strip('/').split('/')) if path else 0
        here = [blob.entry(k) for k,blob in files.items() if k.count('/') == depth]
        folders = {'/'.join(k.split('/')[:depth+1]) for k in files if k.count('/') > depth}
        return here + [dict(type='directory', path=f, size=0, oid='0'*40) for f in sorted(folders)]

    @route('POST', f'/api/{_KIND}/{_ID}/paths-info/(?P<rev>[^/]+)')
    def paths(self, repo, rev):
        files = self.get(repo).at(rev).files
        wanted = self.json['paths'] if self.body[:1] == b'{' else parse_qs(self.body.decode())['paths']
        return [files[p].entry(p) for p in wanted if p in files]

    @route('GET', f'/api/{_KIND}/{_ID}/commits/(?P<rev>[^/]+)')
    def commits(self, repo, rev):
        fixed = dict(message='', authors=[dict(user=self.user or 'nobody')])
        return [dict(id=c.oid, title=c.title, date=c.date) | fixed for c in self.get(repo).history(rev)]

    @route('(GET|HEAD)', f'(?:/datasets)?/{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)')
    def resolve(self, repo, rev, path):
        commit = self.get(repo).at(rev)
        if path not in commit.files: raise Refused(404, f'{path} does not exist in {rev}', 'EntryNotFound')
        blob = commit.files[path]
        etag = f'"{blob.sha256 if blob.lfs else blob.oid}"'
        headers = {'X-Repo-Commit':commit.oid, 'ETag':etag, 'X-Linked-Size':str(len(blob.data))}
        if blob.lfs: headers['X-Linked-Etag'] = etag
        return blob.data, headers

class Writing(Reading):
    "Routes that change something"
    @route('POST', f'/api/models/{_ID}/preupload/(?P<rev>[^/]+)')
    def preupload(self, repo, rev):
        files,wanted = self.get(repo, write=True).at(rev).files,self.json
        there = files['.gitignore'].data.decode() if '.gitignore' in files else ''
        ignored = wanted.get('gitIgnore', there).split()
        def answer(path):
            blob = files.get(path)
            return dict(path=path, uploadMode='lfs' if LFS.search(path) else 'regular',
                        shouldIgnore=any(Path(path).match(pattern) for pattern in ignored),
                        oid=blob and (blob.sha256 if blob.lfs else blob.oid))
        return dict(files=[answer(f['path']) for f in wanted['files']])

    @route('POST', f'/{_ID}\\.git/info/lfs/objects/batch')
    def batch(self, repo):
        self.get(repo, write=True)
        def actions(oid): # None for content that is here already
            if oid in self.hub.objects: return {}
            upload,verify = f'{self.hub.url}/lfs/{oid}',f'{self.hub.url}/lfs-verify/{repo}'
            return dict(actions=dict(upload=dict(href=upload), verify=dict(href=verify)))
        objects = [dict(oid=o['oid'], size=o['size']) | actions(o['oid']) for o in self.json['objects']]
        return dict(transfer='basic', objects=objects)

    @route('PUT', '/lfs/(?P<oid>[0-9a-f]{64})')
    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid: raise Refused(400, 'the content does not have this hash')
        self.hub.objects[oid] = self.body
        return {}

    @route('POST', f'/lfs-verify/{_ID}')
    def verify(self, repo):
        if self.json['oid'] not in self.hub.objects: raise Refused(404, 'object not found')
        return {}

    def _changed(self, files): # A commit's header, and the files after it
        head,files = {},dict(files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            key,value = operation['key'],operation['value']
            if key == 'header': head = value
            elif key == 'file': files[value['path']] = Blob(base64.b64decode(value['content']))
            elif key == 'lfsFile':
                if value['oid'] not in self.hub.objects:
                    raise Refused(400, f"{value['path']}: its content was not uploaded")
                files[value['path']] = Blob(self.hub.objects[value['oid']], lfs=True)
            elif key == 'deletedFile':
                if files.pop(value['path'], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", 'EntryNotFound')
            elif key == 'deletedFolder':
                folder = value['path'].rstrip('/') + '/'
                files = {k:blob for k,blob in files.items() if not k.startswith(folder)}
        return head, files

    @route('POST', f'/api/models/{_ID}/commit/(?P<rev>[^/]+)')
    def commit(self, repo, rev):
        found = self.get(repo, write=True)
        if rev not in found.branches: raise Refused(404, f'{rev}: no such branch', 'RevisionNotFound')
        head,files = self._changed(found.at(rev).files)
        if head.get('parentCommit') not in (None, found.branches[rev]):
            raise Refused(412, 'A commit has happened since')
        commit = found.commit(rev, files, head['summary'])
        url = f'{self.hub.url}/{repo}/commit/{commit.oid}'
        return dict(success=True, commitOid=commit.oid, commitUrl=url, hookOutput='')

    @route('POST', f'/api/models/{_ID}/tag/(?P<rev>[^/]+)')
    def tag(self, repo, rev):
        found,name = self.get(repo, write=True),self.json['tag']
        oid = found.at(rev).oid
        if name in found.tags: raise Refused(409, f'Tag {name} already exists')
        found.tags[name] = oid
        return {}

    @route('DELETE', f'/api/models/{_ID}/tag/(?P<name>[^/]+)')
    def untag(self, repo, name):
        tags = self.get(repo, write=True).tags
        if tags.pop(name, None) is None: raise Refused(404, f'{name}: no such tag', 'RevisionNotFound')
        return {}

    @route('POST', f'/api/models/{_ID}/branch/(?P<name>[^/]+)')
    def branch(self, repo, name):
        found = self.get(repo, write=True)
        if name in found.branches: raise Refused(409, f'Reference already exists: {name}')
        found.branches[name] = found.at(self.json.get('startingPoint', 'main')).oid
        return {}

class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass

    def _body(self): # All of it, with or without a length
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        out = b''
        while n := int(self.rfile.readline().split(b';')[0], 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def _answer(self, status, data, headers, upto=None): # The answer, or its first `upto` bytes
        self.send_response(status)
        all_headers = {'Content-Type':'application/json'} | headers | {'Content-Length':str(len(data))}
        for k,v in all_headers.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data[:upto])

    def _trickle(self): # White space before JSON that never comes
        self.send_response(200)
        for k,v in {'Content-Type':'application/json', 'Content-Length':str(10**9)}.items(): self.send_header(k, v)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.hub.closing.wait(.1):
                self.wfile.write(b' ')
                self.wfile.flush()

    def _route(self, url, body, user): # What the route that matches returns
        for method,pattern,f in _ROUTES:
            if not re.fullmatch(method, self.command) or not (m := pattern.match(url.path)): continue
            args = {k:unquote(v) for k,v in m.groupdict().items() if v is not None}
            routes = Writing(self.server.hub, user, parse_qs(url.query), body, self.headers)
            with self.server.hub.lock: return f(routes, **args)
        raise Refused(404, f'{self.command} {url.path}: this small Hub does not know it')

    def _result(self, url, body, user): # (status, bytes, headers)
        try: out = self._route(url, body, user)
        except Refused as e:
            error = dict(error=str(e), errors=[dict(message=str(e))], warnings=[]) | (dict(url=e.url) if e.url else {})
            headers = {'X-Error-Message':str(e)} | ({'X-Error-Code':e.code} if e.code else {})
            return e.status, json.dumps(error).encode(), headers
        return (200, *out) if isinstance(out, tuple) else (200, json.dumps(out).encode(), {})

    def _planned(self, status, fault): # (status, bytes, headers) of a fault that is a status
        message = 'Invalid credentials in Authorization header' if status == 401 else f'a planned {status}'
        headers = {'X-Error-Message':message}
        if fault and fault.retry_after is not None: headers['Retry-After'] = str(fault.retry_after)
        return status, json.dumps(dict(error=f'a planned {status}')).encode(), headers

    def _do(self): # Every request is read to its end, logged, and then answered, or not
        hub,url,body = self.server.hub,urlparse(self.path),self._body()
        user = hub.tokens.get(self.headers.get('Authorization', '').removeprefix('Bearer '))
        with hub.lock:
            fault = next((f for f in hub.faults if f.meets(f'{self.command} {url.path}')), None)
            kind = fault and fault.kind
            request = Request(self.command, url.path, len(body), user, kind)
            hub.log.append(request)
        if 'Authorization' in self.headers and user is None: kind = kind or 401
        if kind == 'hang': hub.closing.wait()
        elif kind == 'trickle': self._trickle()
        if kind not in ('cut', 'hang', 'trickle'):
            out = self._planned(kind, fault) if isinstance(kind, int) else self._result(url, body, user)
            request.status = out[0]
            if kind != 'lost': self._answer(*out, upto=len(out[1])//2 if kind == 'cut_inside' else None)
        if isinstance(kind, str): self.close_connection = True
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

class SmallHub:
    "A Hub on loopback: `with SmallHub() as hub: hub.url`"
    def __init__(self,
        user:str='ann',        # A user, whose token is `hub.token`
        orgs:dict|None=None,   # Organizations: name -> the user's role in it (read, contributor, write, admin)
        role:str='write',      # What the token may do: read or write
    ):
        self.users,self.tokens,self.repos,self.objects = {},{},{},{}
        self.faults,self.log,self.lock,self.closing = [],[],threading.RLock(),threading.Event()
        self.token = self.add_user(user, orgs or {}, role)

    def add_user(self, name, orgs=None, role='write')->str: # The user's token
        "Add a user"
        token = f'hf_{secrets.token_hex(17)}'
        self.users[name],self.tokens[token] = dict(orgs=orgs or {}, role=role),name
        return token

    def fault(self, match, kind, times=1, **kw)->Fault:
        "Plan a fault; see `Fault`"
        self.faults.append(Fault(match, kind, times, **kw))
        return self.faults[-1]

    def sent(self, match='', since=0)->int: # Bytes in the bodies of requests that match
        "How much was sent to the Hub"
        return sum(r.sent for r in self.log[since:] if re.search(match, f'{r.method} {r.path}'))

    def count(self, match='', since=0)->int: # Requests that match
        "How often the Hub was asked"
        return sum(bool(re.search(match, f'{r.method} {r.path}')) for r in self.log[since:])

    def env(self, home)->dict: # Environment of a client, with its cache in the folder `home`
        "What makes the real client talk to this Hub"
        quiet = dict(HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
        return dict(HF_ENDPOINT=self.url, HF_TOKEN=self.token, HF_HOME=str(home), HF_HUB_OFFLINE='0', **quiet,
                    NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')

    def __enter__(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
        self.server.hub,self.server.daemon_threads,self.server.block_on_close = self,True,False
        self.server.handle_error = lambda *_: None    # clients that close the connection
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        serve = threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True)
        serve.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

@contextlib.contextmanager
def small_hub(**kw): # Arguments of `SmallHub`; by default the user may write to the organization `team`
    "A small Hub that child processes of this one talk to: its address and token are in `os.environ` inside the block"
    kw.setdefault('orgs', dict(team='write'))
    with SmallHub(**kw) as hub, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        env = hub.env(home)
        before = {k:os.environ.get(k) for k in env}
        os.environ.update(env)
        try: yield hub
        finally:
            for k,v in before.items(): os.environ.pop(k) if v is None else os.environ.update({k:v})
