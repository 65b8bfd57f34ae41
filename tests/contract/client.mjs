// SPDX-License-Identifier: AGPL-3.0-only
// A client that uses Node's fetch and FormData, as MT Photos does: node client.mjs URL KEY PHOTO
import { readFile } from 'node:fs/promises'

const [url, key, photo] = process.argv.slice(2)
const bytes = await readFile(photo)

async function post(route, body, headers = {}) {
  const answer = await fetch(url + route, { method: 'POST', body, headers: { 'api-key': key, ...headers } })
  return { status: answer.status, body: await answer.json() }
}

function form(content) {
  const data = new FormData()
  data.append('file', new Blob([content], { type: 'image/jpeg' }), '照片.jpg')
  return data
}

const text = JSON.stringify({ text: '红色' })
console.log(JSON.stringify({
  '/check': await post('/check?t=' + Date.now()),
  '/ocr': await post('/ocr', form(bytes)),
  '/clip/img': await post('/clip/img', form(bytes)),
  '/represent': await post('/represent', form(bytes)),
  '/clip/txt': await post('/clip/txt', text, { 'content-type': 'application/json' }),
  refused: await post('/ocr', form(new Uint8Array(20_000_000)), { 'api-key': 'wrong' }),
}))
