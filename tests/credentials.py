"""Made-up credentials of many kinds, built anew from a seed: no literal of this file is one."""

import base64
import json
import random
import string
import zlib
from functools import cache

DIGITS, HEX, LOWER, UPPER = string.digits, string.digits + "abcdef", string.ascii_lowercase, string.ascii_uppercase
ALNUM = string.ascii_letters + DIGITS
URL = ALNUM + "-_"
BASE32 = UPPER + "234567"


class _Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def of(self, alphabet, length):
        """Random characters that hold digits and letters, as long random strings do."""
        while True:
            text = "".join(self.random.choices(alphabet, k=length))
            kinds = {character.isdigit() for character in alphabet}
            if length < 8 or {character.isdigit() for character in text} == kinds:
                return text

    def uuid(self):
        return "-".join(self.of(HEX, length) for length in (8, 4, 4, 4, 12))

    def base64(self, length):
        return base64.b64encode(self.random.randbytes(length)).decode()

    def checked(self, prefix, length=30):
        """GitHub's and npm's form: random characters, then their CRC-32 in base 62."""
        body, number, digits = self.of(ALNUM, length), 0, ""
        number = zlib.crc32(body.encode())
        for _ in range(6):
            number, digit = divmod(number, 62)
            digits = (DIGITS + UPPER + LOWER)[digit] + digits
        return f"{prefix}{body}{digits}"

    def jwt(self, **claims):
        parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": self.of(DIGITS, 10), "iat": 1700000000} | claims)
        coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*coded, self.of(URL, 43)])

    def pem(self, kind, length=1192):
        body = self.base64(length)
        lines = [body[start : start + 64] for start in range(0, len(body), 64)]
        return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])


@cache
def credentials(seed=0):
    """Kind -> the credential as a person would paste it: alone if its form says what it is, else with its name."""
    m = _Maker(seed)
    of, uuid = m.of, m.uuid
    account = {"type": "service_account", "project_id": "demo-4711", "private_key_id": of(HEX, 40)}
    account |= {"private_key": m.pem("PRIVATE KEY") + "\n", "client_email": "x@demo-4711.iam.gserviceaccount.com"}
    return {
        # --- clouds ---
        "aws-access-key": "AKIA" + of(BASE32, 16),
        "aws-temporary-key": "ASIA" + of(BASE32, 16),
        "aws-secret-key": "aws_secret_access_key = " + of(ALNUM + "/+", 40),
        "aws-session-token": "AWS_SESSION_TOKEN=" + m.base64(300),
        "aws-bedrock-key": "ABSK" + m.base64(99),
        "gcp-service-account": json.dumps(account),
        "google-api-key": "AIza" + of(URL, 35),
        "google-oauth-secret": "GOCSPX-" + of(URL, 28),
        "google-oauth-token": "ya29." + of(URL, 140),
        "google-refresh-token": "1//0" + of(URL, 60),
        "azure-storage-key": f"DefaultEndpointsProtocol=https;AccountName=demo;AccountKey={m.base64(64)};"
        "EndpointSuffix=core.windows.net",
        "azure-client-secret": "AZURE_CLIENT_SECRET=" + of(ALNUM, 3) + "8Q~" + of(ALNUM + "~._-", 34),
        "azure-sas": f"https://demo.blob.core.windows.net/x?sv=2022-11-02&sp=r&sig={of(ALNUM, 42)}%3D",
        "azure-devops-pat": "AZURE_DEVOPS_PAT=" + of(LOWER + DIGITS, 52),
        "azure-openai-key": "AZURE_OPENAI_API_KEY=" + of(HEX, 32),
        "digitalocean": "dop_v1_" + of(HEX, 64),
        "digitalocean-oauth": "doo_v1_" + of(HEX, 64),
        "heroku": "HRKU-" + uuid(),
        "heroku-env": "HEROKU_API_KEY=" + uuid(),
        "cloudflare-token": "CLOUDFLARE_API_TOKEN=" + of(URL, 40),
        "cloudflare-origin-ca": f"v1.0-{of(HEX, 24)}-{of(HEX, 146)}",
        "alibaba": "LTAI" + of(ALNUM, 20),
        "ibm-cloud": "IBM_CLOUD_API_KEY=" + of(URL, 44),
        "linode": "LINODE_TOKEN=" + of(HEX, 64),
        "fly": "FlyV1 fm2_" + m.base64(150),
        "scaleway": "SCW_SECRET_KEY=" + uuid(),
        "vultr": "VULTR_API_KEY=" + of(UPPER + DIGITS, 36),
        # --- code and packages ---
        "github-classic": m.checked("ghp_"),
        "github-oauth": m.checked("gho_"),
        "github-app": m.checked("ghs_"),
        "github-refresh": m.checked("ghr_", 70),
        "github-fine-grained": f"github_pat_{of(ALNUM, 22)}_{of(ALNUM, 59)}",
        "gitlab-pat": "glpat-" + of(URL, 20),
        "gitlab-deploy": "gldt-" + of(URL, 20),
        "gitlab-runner": "glrt-" + of(URL, 20),
        "bitbucket-app-password": "ATBB" + of(ALNUM, 24) + of(HEX, 8).upper(),
        "npm": m.checked("npm_"),
        "npmrc": f"//registry.npmjs.org/:_authToken={uuid()}",
        "pypi": "pypi-AgEIcHlwaS5vcmc" + of(URL, 150),
        "rubygems": "rubygems_" + of(HEX, 48),
        "crates": "cio" + of(ALNUM, 32),
        "docker-hub": "dckr_pat_" + of(URL, 27),
        "artifactory": "AKCp" + of(ALNUM, 69),
        "sonarqube": "sqp_" + of(HEX, 40),
        "snyk": "SNYK_TOKEN=" + uuid(),
        "circleci": f"CCIPAT_{of(ALNUM, 22)}_{of(HEX, 40)}",
        "travis": "TRAVIS_API_TOKEN=" + of(URL, 22),
        "buildkite": "bkua_" + of(HEX, 40),
        # --- language models ---
        "huggingface": "hf_" + of(string.ascii_letters, 34),
        "openai-old": f"sk-{of(ALNUM, 20)}T3BlbkFJ{of(ALNUM, 20)}",
        "openai-project": f"sk-proj-{of(URL, 74)}T3BlbkFJ{of(URL, 74)}",
        "openai-service": f"sk-svcacct-{of(URL, 74)}T3BlbkFJ{of(URL, 74)}",
        "anthropic": f"sk-ant-api03-{of(URL, 93)}AA",
        "anthropic-admin": f"sk-ant-admin01-{of(URL, 93)}AA",
        "cohere": "COHERE_API_KEY=" + of(ALNUM, 40),
        "groq": "gsk_" + of(ALNUM, 52),
        "replicate": "r8_" + of(ALNUM, 37),
        "mistral": "MISTRAL_API_KEY=" + of(ALNUM, 32),
        "together": "TOGETHER_API_KEY=" + of(HEX, 64),
        "openrouter": "sk-or-v1-" + of(HEX, 64),
        "deepseek": "sk-" + of(HEX, 32),
        "xai": "xai-" + of(ALNUM, 80),
        "perplexity": "pplx-" + of(ALNUM, 48),
        "fireworks": "FIREWORKS_API_KEY=fw_" + of(ALNUM, 24),
        "nvidia": "nvapi-" + of(URL, 64),
        "langsmith": f"lsv2_pt_{of(HEX, 32)}_{of(HEX, 10)}",
        "wandb": "WANDB_API_KEY=" + of(HEX, 40),
        "wandb-new": "wandb_v1_" + of(ALNUM + "_", 77),
        "pinecone": f"pcsk_{of(ALNUM, 6)}_{of(ALNUM, 63)}",
        "kaggle": json.dumps({"username": "ann", "key": of(HEX, 32)}),
        "comet": "COMET_API_KEY=" + of(ALNUM, 25),
        # --- messages and mail ---
        "slack-bot": f"xoxb-{of(DIGITS, 12)}-{of(DIGITS, 13)}-{of(ALNUM, 24)}",
        "slack-user": f"xoxp-{of(DIGITS, 12)}-{of(DIGITS, 12)}-{of(DIGITS, 13)}-{of(HEX, 32)}",
        "slack-app": f"xapp-1-A{of(UPPER + DIGITS, 10)}-{of(DIGITS, 13)}-{of(HEX, 64)}",
        "slack-webhook": f"https://hooks.slack.com/services/T{of(UPPER + DIGITS, 8)}/B{of(UPPER + DIGITS, 8)}/"
        + of(ALNUM, 24),
        "discord-bot": f"DISCORD_TOKEN=M{of(ALNUM, 23)}.{of(ALNUM, 6)}.{of(URL, 38)}",
        "discord-webhook": f"https://discord.com/api/webhooks/{of(DIGITS, 18)}/{of(URL, 68)}",
        "teams-webhook": f"https://demo.webhook.office.com/webhookb2/{uuid()}@{uuid()}/IncomingWebhook/"
        f"{of(HEX, 32)}/{uuid()}",
        "telegram": f"{of(DIGITS[1:], 10)}:AA{of(URL, 33)}",
        "twilio": "SK" + of(HEX, 32),
        "twilio-auth": "TWILIO_AUTH_TOKEN=" + of(HEX, 32),
        "sendgrid": f"SG.{of(URL, 22)}.{of(URL, 43)}",
        "mailgun": "key-" + of(HEX, 32),
        "mailgun-new": f"MAILGUN_API_KEY={of(HEX, 32)}-{of(HEX, 8)}-{of(HEX, 8)}",
        "mailchimp": of(HEX, 32) + "-us12",
        "brevo": f"xkeysib-{of(HEX, 64)}-{of(ALNUM, 16)}",
        # --- payment and shops ---
        "stripe-secret": "sk_live_" + of(ALNUM, 24),
        "stripe-restricted": "rk_live_" + of(ALNUM, 99),
        "stripe-webhook": "whsec_" + of(ALNUM, 32),
        "square": "EAAA" + of(URL, 60),
        "square-oauth": "sq0csp-" + of(URL, 43),
        "shopify": "shpat_" + of(HEX, 32),
        "shopify-secret": "shpss_" + of(HEX, 32),
        "paypal-braintree": f"access_token$production${of(LOWER + DIGITS, 16)}${of(HEX, 32)}",
        # --- watching ---
        "datadog": "DD_API_KEY=" + of(HEX, 32),
        "datadog-app": "DATADOG_APP_KEY=" + of(HEX, 40),
        "newrelic": "NRAK-" + of(UPPER + DIGITS, 27),
        "sentry-user": "sntryu_" + of(HEX, 64),
        "sentry-org": f"sntrys_{m.base64(90)}_{of(ALNUM + '+/', 43)}",
        "sentry-dsn": f"https://{of(HEX, 32)}:{of(HEX, 32)}@o4711.ingest.sentry.io/42",
        "grafana": "glsa_" + of(ALNUM, 32) + "_" + of(HEX, 8),
        "pagerduty": "PAGERDUTY_API_KEY=" + of(URL, 20),
        "dynatrace": f"dt0c01.{of(BASE32, 24)}.{of(BASE32, 64)}",
        # --- machines and stores ---
        "databricks": "dapi" + of(HEX, 32),
        "vault": "hvs." + of(URL, 95),
        "vault-old": "VAULT_TOKEN=s." + of(ALNUM, 24),
        "terraform": f"{of(ALNUM, 14)}.atlasv1.{of(URL, 67)}",
        "doppler": "dp.pt." + of(ALNUM, 43),
        "pulumi": "pul-" + of(HEX, 40),
        "supabase": "sbp_" + of(HEX, 40),
        "planetscale": "pscale_tkn_" + of(URL, 43),
        "tailscale": f"tskey-auth-{of(ALNUM, 12)}CNTRL-{of(ALNUM, 32)}",
        "age": "AGE-SECRET-KEY-1" + of("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58),
        "1password": "ops_eyJ" + m.base64(400),
        # --- offices ---
        "atlassian": f"ATATT3xFfGF0{of(URL, 171)}={of(HEX, 8).upper()}",
        "jira-env": "JIRA_API_TOKEN=" + of(ALNUM, 24),
        "linear": "lin_api_" + of(ALNUM, 40),
        "notion": "ntn_" + of(DIGITS, 11) + of(ALNUM, 35),
        "notion-old": "secret_" + of(ALNUM, 43),
        "airtable": f"pat{of(ALNUM, 14)}.{of(HEX, 64)}",
        "figma": "figd_" + of(URL, 40),
        "postman": f"PMAK-{of(HEX, 24)}-{of(HEX, 34)}",
        "dropbox": "sl." + of(URL, 136),
        "facebook": "EAACEdEose0cBA" + of(ALNUM, 150),
        "asana": "ASANA_TOKEN=1/" + of(DIGITS, 16) + ":" + of(HEX, 32),
        "zapier-webhook": f"https://hooks.zapier.com/hooks/catch/{of(DIGITS, 7)}/{of(LOWER + DIGITS, 7)}/",
        "contentful": "CFPAT-" + of(URL, 43),
        "typeform": "tfp_" + of(URL, 59),
        "mapbox": f"sk.eyJ{of(ALNUM, 80)}.{of(URL, 22)}",
        "okta": "OKTA_API_TOKEN=00" + of(URL, 40),
        "auth0": "AUTH0_CLIENT_SECRET=" + of(URL, 64),
        "algolia": "ALGOLIA_ADMIN_API_KEY=" + of(HEX, 32),
        "twitter-bearer": "AAAAAAAAAAAAAAAAAAAAA" + of(ALNUM + "%", 80),
        "spotify": "SPOTIFY_CLIENT_SECRET=" + of(HEX, 32),
        # --- keys and generic forms ---
        "jwt": m.jwt(),
        "ssh-key": m.pem("OPENSSH PRIVATE KEY", 270),
        "rsa-key": m.pem("RSA PRIVATE KEY"),
        "ec-key": m.pem("EC PRIVATE KEY", 121),
        "encrypted-key": m.pem("ENCRYPTED PRIVATE KEY"),
        "pgp-key": m.pem("PGP PRIVATE KEY BLOCK"),
        "basic-auth-url": f"https://ann:{of(ALNUM, 12)}@intern.example.org/x",
        "git-url": f"https://oauth2:{of(ALNUM, 20)}@git.example.org/ann/x.git",
        "postgres-url": f"postgresql://ann:{of(ALNUM, 14)}@db.example.org:5432/app",
        "mysql-url": f"mysql://root:{of(ALNUM, 14)}@db.example.org/app",
        "mongodb-url": f"mongodb+srv://ann:{of(ALNUM, 14)}@cluster0.ab1cd.mongodb.net/app",
        "redis-url": f"redis://:{of(ALNUM, 16)}@cache.example.org:6379/0",
        "amqp-url": f"amqp://ann:{of(ALNUM, 14)}@mq.example.org/x",
        "s3-presigned": f"https://b.s3.amazonaws.com/x?X-Amz-Credential=AKIA{of(BASE32, 16)}%2F20260101%2Fus-east-1"
        f"%2Fs3%2Faws4_request&X-Amz-Signature={of(HEX, 64)}",
        "basic-header": "Authorization: Basic " + base64.b64encode(f"ann:{of(ALNUM, 14)}".encode()).decode(),
        "bearer-header": "Authorization: Bearer " + of(ALNUM, 40),
        "env-api-key": "MY_SERVICE_API_KEY=" + of(ALNUM, 32),
        "env-secret": 'CLIENT_SECRET: "' + of(ALNUM, 32) + '"',
        "env-password": "DB_PASSWORD=" + of(ALNUM, 14) + "!x",
        "env-token": "export ACCESS_TOKEN='" + of(ALNUM, 40) + "'",
        "newrelic-license": of(HEX, 36) + "NRAL",
        "telegram-url": f"https://api.telegram.org/bot{of(DIGITS[1:], 10)}:AA{of(URL, 33)}/sendMessage",
        "docker-config": json.dumps({"auths": {"index.docker.io": {"auth": m.base64(20)}}}),
        "kubeconfig": "client-key-data: LS0tLS1CRUdJTi" + of(ALNUM, 120),
        "bitbucket-access-token": f"ATCTT3xFfGN0{of(ALNUM, 170)}={of(HEX, 8).upper()}",
        "elevenlabs": "sk_" + of(HEX, 48),
        "putty-key": "PuTTY-User-Key-File-3: ssh-ed25519\n" + of(ALNUM, 44),
        "option-token": "tool --token " + of(ALNUM, 32),
        "option-password": "tool --password " + of(ALNUM, 14),
        "azure-service-bus": "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKey=" + of(ALNUM, 43) + "=",
        "jdbc-url": "jdbc:postgresql://h/db?user=ann&password=" + of(ALNUM, 12),
        "api-key-header": "X-API-Key: " + of(ALNUM, 32),
        "netrc": f"machine git.example.org login ann password {of(ALNUM, 16)}",
    }
