// What nginx.conf asks about a login before MLflow sees it. For njs 0.7.9 (Debian 12) and later.

import crypto from 'crypto';

const REFUSED_AFTER = 1000; // milliseconds: longer than MLflow hashes, so that unknown users take as long as known ones

// The decoded "user:password" of an Authorization header, or null where it holds none.
function decoded(r) {
    const header = r.headersIn.Authorization || '';
    const match = header.match(/^basic +([A-Za-z0-9+\/]+={0,2})$/i);
    if (!match) {
        return null;
    }
    const bytes = Buffer.from(match[1], 'base64');
    const text = bytes.toString('utf8');
    const whole = bytes.equals(Buffer.from(text, 'utf8'));
    return whole && /^[^\x00-\x1f\x7f:][^\x00-\x1f\x7f]*$/.test(text) && text.indexOf(':') > 0 ? text : null;
}

// Differs with each boot, so that it tells nothing to whoever reads it later.
function hidden(r, what, text) {
    const secret = r.variables.login_secret;
    if (!secret) {
        throw new Error('login_secret.conf is missing: restart nginx.service, which makes it');
    }
    return crypto.createHmac('sha256', secret).update(`${what}\n${text}`).digest('hex');
}

function credential(r) {
    return decoded(r) === null ? '' : hidden(r, 'login', r.headersIn.Authorization);
}

function user(r) {
    const text = decoded(r);
    return text === null ? '' : hidden(r, 'user', text.substring(0, text.indexOf(':'))).substring(0, 16);
}

// What one customer of a network provider has: an IPv4 address, the first 64 bits of an IPv6 address.
function network(r) {
    const address = r.remoteAddress;
    if (address.indexOf(':') < 0) {
        return address;
    }
    const halves = address.split('::');
    const groups = halves[0] ? halves[0].split(':') : [];
    while (halves.length > 1 && groups.length < 4) {
        const last = halves[1] ? halves[1].split(':') : [];
        if (groups.length + last.length >= 8) {
            groups.push(last[last.length - 8 + groups.length]);
        } else {
            groups.push('0');
        }
    }
    return groups.slice(0, 4).join(':');
}

// Why a login was refused, for the person. No text of the request, so there is nothing to quote.
function complaint(r) {
    const header = r.headersIn.Authorization;
    if (!header) {
        return 'No login was sent. To fix: source your mlflow_env.sh, or give your user and password.';
    }
    if (decoded(r) !== null) {
        return 'This user and password do not match. To fix: source your newest mlflow_env.sh; labtrack doctor looks closer.';
    }
    const scheme = /^basic( |$)/i.test(header) ? 'This login can not be read (base64 of user:password in UTF-8)'
        : 'This server takes user and password (HTTP Basic), and no token or other kind of login';
    return `${scheme}. To fix: unset MLFLOW_TRACKING_TOKEN, and source your mlflow_env.sh.`;
}

// Asks MLflow whether a login is good. A refusal takes the same time for every user.
async function check(r) {
    const start = Date.now();
    const reply = await r.subrequest('/asked');
    if (reply.status == 200) {
        const seconds = r.variables.login_seconds;
        r.headersOut['Cache-Control'] = `max-age=${seconds}, stale-while-revalidate=10`;
    } else if (reply.status == 401) {
        const rest = Math.max(0, REFUSED_AFTER - (Date.now() - start));
        await new Promise((resolve) => setTimeout(resolve, rest));
    }
    r.return(reply.status);
}

export default {check, complaint, credential, network, user};
