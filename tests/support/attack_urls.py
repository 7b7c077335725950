"""URLs that would have the service read what its clients cannot: each names an internal host that
listens on PORT.
"""

INTERNAL = "127.0.0.1"
METADATA = "169.254.169.254"

# What an attacker's or an internal name server would answer.
ADDRESSES = {
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "app.localhost": ["127.0.0.1"],
    "intranet": ["10.0.0.8"],
    "localtest.test": ["127.0.0.1"],
    "both.test": ["93.184.215.14", "127.0.0.1"],
    "both6.test": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "translated.test": ["64:ff9b::7f00:1"],
    "scoped.test": ["fe80::1%lo"],
    "nowhere.test": [],
    "metadata": [METADATA],
    "metadata.google.internal": [METADATA],
    "instance-data.test": ["fd00:ec2::254"],
}

ATTACKS = (
    # plain, and other ways to write 127.0.0.1
    *(
        "http://127.0.0.1:PORT/",
        "https://127.0.0.1:PORT/",
        "HTTP://127.0.0.1:PORT",
        "http://127.0.0.1:PORT?a.png",
    ),
    *(
        "http://127.1:PORT/",
        "http://127.0.1:PORT/",
        "http://127.127.127.127:PORT/",
        "http://0:PORT/",
    ),
    *(
        "http://2130706433:PORT/",
        "http://0x7f000001:PORT/",
        "http://0x7f.0.0.1:PORT/",
        "http://0177.0.0.1:PORT/",
    ),
    *(
        "http://017700000001:PORT/",
        "http://127.000.000.001:PORT/",
        "http://0x7f.1:PORT/",
        "http://127.0.0.1.:PORT/",
    ),
    *(
        "http://4294967296:PORT/",
        "http://425.510.425.510:PORT/",
        "http://0.0.0.0:PORT/",
        "http://1:PORT/",
    ),
    # IPv6, with IPv4 inside
    *(
        "http://[::1]:PORT/",
        "http://[::]:PORT/",
        "http://[0:0:0:0:0:0:0:1]:PORT/",
        "http://[::ffff:127.0.0.1]:PORT/",
    ),
    *(
        "http://[::ffff:7f00:1]:PORT/",
        "http://[::127.0.0.1]:PORT/",
        "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    ),
    *(
        "http://[64:ff9b::127.0.0.1]:PORT/",
        "http://[64:ff9b:1::7f00:1]:PORT/",
        "http://[2002:7f00:1::]:PORT/",
    ),
    *("http://[2001:0:7f00:1::]:PORT/", "http://[fe80::1%25lo]:PORT/", "http://[fe80::1%lo]:PORT/"),
    *(
        "http://[::1%2525lo]:PORT/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]:PORT/",
        "http://[fec0::1]:PORT/",
    ),
    *(
        "http://[::1:PORT/",
        "http://::1:PORT/",
        "http://[::ffff:0:127.0.0.1]:PORT/",
        "http://[127.0.0.1]:PORT/",
    ),
    # names
    *(
        "http://localhost:PORT/",
        "http://LOCALHOST:PORT/",
        "http://localhost.:PORT/",
        "http://app.localhost:PORT/",
    ),
    *(
        "http://localhost.localdomain:PORT/",
        "http://ip6-localhost:PORT/",
        "http://intranet/",
        "http://intranet./",
    ),
    *(
        "http://localtest.test:PORT/",
        "http://both.test:PORT/",
        "http://both6.test:PORT/",
        "http://mapped.test:PORT/",
    ),
    *("http://translated.test:PORT/", "http://scoped.test:PORT/", "http://nowhere.test:PORT/"),
    # metadata of clouds, private and special networks
    *(
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "http://metadata/",
    ),
    *(
        "http://instance-data.test/",
        "http://100.100.100.200/",
        "http://192.0.0.192/",
        "http://168.63.129.16/",
    ),
    *(
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://198.18.0.1/",
    ),
    *("http://224.0.0.1/", "http://255.255.255.255/", "http://240.0.0.1/", "http://192.88.99.1/"),
    # users, and what another parser may take for the host
    *(
        "http://a@127.0.0.1:PORT/",
        "http://a:b@127.0.0.1:PORT/",
        "http://example.org@127.0.0.1:PORT/",
    ),
    *(
        "http://127.0.0.1:PORT@example.org/",
        "http://example.org:80@127.0.0.1:PORT/",
        "http://@127.0.0.1:PORT/",
    ),
    *(
        "http://127.0.0.1:PORT\\@example.org/",
        "http://example.org\\@127.0.0.1:PORT/",
        "http:\\\\127.0.0.1:PORT\\",
    ),
    *(
        "http://127.0.0.1:PORT#@example.org/",
        "http://localhost:PORT#.example.org",
        "http://localhost:PORT?@example.org",
    ),
    *(
        "http:///127.0.0.1:PORT/",
        "http:127.0.0.1:PORT/",
        "http:/127.0.0.1:PORT/",
        "http:////127.0.0.1:PORT/",
    ),
    *(
        "//127.0.0.1:PORT/",
        "http://example.org;127.0.0.1:PORT/",
        "http://127.0.0.1:PORT;.example.org/",
    ),
    *(
        "http://%31%32%37.0.0.1:PORT/",
        "http://127.0.0.1%00.example.org:PORT/",
        "http://127.0.0.1%23.example.org/",
    ),
    *(
        "http://127.0.0.1:PORT,example.org/",
        "http://example.org:PORT:80/",
        "http://example.org:99999/",
        "http://:PORT/",
    ),
    # letters that become others
    *(
        "http://127。0。0。1:PORT/",
        "http://127\uff0e0\uff0e0\uff0e1:PORT/",
        "http://①②⑦.0.0.1:PORT/",
        "http://ⓛocalhost:PORT/",
    ),
    *(
        "http://loca\u017fhost:PORT/",
        "http://bac\u212a.localhost:PORT/",
        "http\u017f://127.0.0.1:PORT/",
    ),
    *(
        "http://localho\u00adst:PORT/",
        "http://local\u200bhost:PORT/",
        "http://\uff4c\uff4f\uff43alhost:PORT/",
    ),
    # spaces and line ends
    *(
        "http://127.0.0.1:PORT/\r\nHost: example.org",
        "http://127.0.0.1\r\n:PORT/",
        " http://127.0.0.1:PORT/",
    ),
    *(
        "http://127.0.0.1:PORT/ a",
        "ht\ntp://127.0.0.1:PORT/",
        "http://127.0.0.1\t:PORT/",
        "http://127.0.0.1 :PORT/",
    ),
    *("http://127.0.0.1:PORT/\0", "http://exam ple.org/", "http://127.0.0.1:PORT/\u2028"),
    # other schemes
    *(
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "gopher://127.0.0.1:PORT/_GET",
        "ftp://127.0.0.1:PORT/",
    ),
    *(
        "dict://127.0.0.1:PORT/",
        "jar:http://127.0.0.1:PORT/!/",
        "ws://127.0.0.1:PORT/",
        "unix:///tmp/a.sock",
    ),
    *(
        "ldap://127.0.0.1:PORT/",
        "netdoc:///etc/passwd",
        "view-source:http://127.0.0.1:PORT/",
        "blob:http://localhost/",
    ),
    *(
        "data:text/plain,http://127.0.0.1:PORT/",
        "javascript:1",
        "http+unix://%2Ftmp%2Fa.sock/",
        "httpx://127.0.0.1/",
    ),
    # ports that are not allowed
    *(
        "http://93.184.215.14:22/",
        "http://93.184.215.14:6379/",
        "https://93.184.215.14:80/",
        "http://93.184.215.14:0/",
    ),
)


def attacks(port: int) -> list[str]:
    """Return the URLs for an internal host on `port`."""
    return [url.replace("PORT", str(port)) for url in ATTACKS]
